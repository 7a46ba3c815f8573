package main

import (
	"context"
	"fmt"
	"io"

	"github.com/alecthomas/kong"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/store"
)

// storeCmd looks into the directory of a chunkserver that does not run. It
// asks nobody, and changes nothing.
type storeCmd struct {
	JSON bool `name:"json" help:"Print JSON instead of tables."`

	Inspect storeInspect `cmd:"" help:"Tell what the directory of a stopped chunkserver holds: volumes, copysets, journal."`
	Verify  storeVerify  `cmd:"" help:"Read all of it and compare it with its checksums."`

	out, err io.Writer
}

func (s *storeCmd) AfterApply(k *kong.Context) error {
	s.out, s.err = k.Stdout, k.Stderr
	k.Bind(s)
	return nil
}

// storeDir is the argument that names a directory.
type storeDir struct {
	Dir string `arg:"" help:"What the chunkserver was given as --data; of localsnap dev, DATA/chunkserver1 to 3."`
}

// open begins to look.
func (d storeDir) open() (*store.Inspection, error) { return store.Inspect(d.Dir) }

type storeInspect struct {
	storeDir
	Layers bool `help:"List each layer too: what was written to one chunk between two snapshots."`
}

func (*storeInspect) Help() string {
	return `What the journal holds beyond the last checkpoint is counted as if it had been executed, as the chunkserver will when it starts.
Nothing in the directory is changed. The blocks are not read: that is what verify does. The exit code is 1 if there is damage. For example:

  localsnap store inspect ./data/chunkserver1
  localsnap store inspect ./data/chunkserver1 --layers --json | jq '.Layers[] | select(.Volume == 3)'`
}

// storeReport is what inspect prints. Sizes are in bytes.
type storeReport struct {
	Store    string
	Cluster  string
	Version  int
	Data     uint64
	Journal  store.Journal
	Volumes  []volumeReport
	Copysets []copysetReport
	Layers   []layerReport `json:",omitempty"`
	Damage   []string
}

type volumeReport struct {
	Volume         chunk.VolumeID
	Chunks, Layers int
	Data, Zeros    uint64
}

type copysetReport struct {
	Copyset      chunk.CopysetID
	Promised     chunk.Epoch
	Epoch        chunk.Epoch // of the last entry
	Last, Commit chunk.LSN
}

type layerReport struct {
	Volume      chunk.VolumeID
	Chunk       uint32
	Seq         chunk.Seq
	Data, Zeros uint64
}

func (c *storeInspect) Run(s *storeCmd) error {
	i, err := c.open()
	if err != nil {
		return err
	}
	defer i.Close()
	r := report(i, c.Layers)
	if err := show(s.out, s.JSON, r, r.print); err != nil {
		return err
	}
	if len(r.Damage) > 0 {
		return fmt.Errorf("%s is damaged", c.Dir)
	}
	return nil
}

func report(i *store.Inspection, withLayers bool) *storeReport {
	r := &storeReport{
		Store: i.ID, Cluster: i.Cluster, Version: i.Version, Data: i.Used, Journal: i.Journal,
		Volumes: []volumeReport{}, Copysets: []copysetReport{}, Damage: []string{},
	}
	if i.Damage != nil {
		r.Damage = append(r.Damage, i.Damage.Error())
	}
	for _, s := range i.Copysets {
		r.Copysets = append(r.Copysets, copysetReport{s.Copyset, s.Promised, s.LastEpoch, s.Last, s.Commit})
	}
	var last chunk.Ref
	err := i.Layers(func(l store.LayerInfo) {
		data, zeros := uint64(l.Data)*chunk.BlockSize, uint64(l.Zeros)*chunk.BlockSize
		if l.Ref.Volume != last.Volume {
			r.Volumes = append(r.Volumes, volumeReport{Volume: l.Ref.Volume})
		}
		v := &r.Volumes[len(r.Volumes)-1]
		if l.Ref != last {
			v.Chunks++
		}
		last = l.Ref
		v.Layers++
		v.Data += data
		v.Zeros += zeros
		if withLayers {
			r.Layers = append(r.Layers, layerReport{l.Ref.Volume, l.Ref.Index, l.Seq, data, zeros})
		}
	})
	if err != nil {
		r.Damage = append(r.Damage, err.Error())
	}
	return r
}

func (r *storeReport) print(w io.Writer) error {
	cluster := "no cluster yet"
	if r.Cluster != "" {
		cluster = "cluster " + r.Cluster
	}
	j := r.Journal
	fmt.Fprintf(w, "store %s of %s, version %d, with %s of data\n", r.Store, cluster, r.Version, mebibytes(r.Data))
	fmt.Fprintf(w, "journal segments %d to %d of %s each, %d unused ones; %d records since the last checkpoint, executed here in memory\n\n",
		j.First, j.Last, mebibytes(uint64(j.SegmentBytes)), j.Spares, j.Pending)
	err := table(w, "VOLUME\tCHUNKS\tLAYERS\tDATA\tZEROS", len(r.Volumes), func(i int) string {
		v := r.Volumes[i]
		return fmt.Sprintf("%d\t%d\t%d\t%s\t%s", v.Volume, v.Chunks, v.Layers, mebibytes(v.Data), mebibytes(v.Zeros))
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(w)
	err = table(w, "COPYSET\tEPOCH\tLAST\tCOMMITTED\tPROMISED EPOCH", len(r.Copysets), func(i int) string {
		c := r.Copysets[i]
		return fmt.Sprintf("%d\t%d\t%d\t%d\t%d", c.Copyset, c.Epoch, c.Last, c.Commit, c.Promised)
	})
	if err != nil {
		return err
	}
	if len(r.Layers) > 0 {
		fmt.Fprintln(w)
		err = table(w, "VOLUME\tCHUNK\tSEQUENCE NUMBER\tDATA\tZEROS", len(r.Layers), func(i int) string {
			l := r.Layers[i]
			return fmt.Sprintf("%d\t%d\t%d\t%s\t%s", l.Volume, l.Chunk, l.Seq, mebibytes(l.Data), mebibytes(l.Zeros))
		})
	}
	for _, d := range r.Damage {
		fmt.Fprintf(w, "\n%s\n", d)
	}
	return err
}

// mebibytes writes a size as one of many in a column.
func mebibytes(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

type storeVerify struct{ storeDir }

func (*storeVerify) Help() string {
	return `It reads every block, the journal and the metadata, and looks for files that nothing refers to. What it finds is on stdout, its
progress on stderr. Nothing in the directory is changed. The exit code is 1 if there is damage. For example:

  localsnap store verify ./data/chunkserver1 && echo intact`
}

// storeFinding is a finding as JSON. Volume 0: it is about the store as a
// whole; Block -1: about a layer or chunk as a whole.
type storeFinding struct {
	Volume chunk.VolumeID
	Chunk  uint32
	Seq    chunk.Seq
	Block  int
	Reason string
}

func (c *storeVerify) Run(ctx context.Context, s *storeCmd) error {
	i, err := c.open()
	if err != nil {
		return err
	}
	defer i.Close()
	findings := []storeFinding{}
	bar := progress{w: s.err, what: "verifying " + c.Dir, terminal: isTerminal(s.err)}
	var done uint64
	err = i.Verify(ctx, func(f store.Finding) {
		findings = append(findings, storeFinding{f.Ref.Volume, f.Ref.Index, f.Seq, f.Block, f.Reason})
		if !s.JSON {
			bar.end()
			fmt.Fprintln(s.out, f)
		}
	}, func(n uint64) {
		done = n
		bar.at(int(100*done/max(1, i.Used)), false)
	})
	if err != nil {
		bar.end()
		return fmt.Errorf("verify %s: %w", c.Dir, err)
	}
	bar.at(100, true)
	result := struct {
		Store    string
		Verified uint64
		Findings []storeFinding
	}{i.ID, done, findings}
	err = show(s.out, s.JSON, result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "verified %s of data: %d findings\n", mebibytes(done), len(findings))
		return err
	})
	if err == nil && len(findings) > 0 {
		err = fmt.Errorf("%s is damaged", c.Dir)
	}
	return err
}

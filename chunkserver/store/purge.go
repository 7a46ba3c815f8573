package store

import (
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// purge makes every block absent that lies in a layer up to op.UpTo and that
// none of op.Views reaches. Nothing is remembered about who uses what: it is
// worked out here, from the views that are left.
func (s *Store) purge(op *chunk.Op, by stamp) error {
	sh := s.table.shard(op.Ref.Index)
	sh.io.Lock()
	defer sh.io.Unlock()
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c, err := sh.column(op.Ref)
	if err != nil {
		return err
	}
	reached := make(map[*layer]*blockSet)
	var before chunk.Lineage
	for _, v := range op.Views {
		reach(c, extension(before, v.Lineage()), reached)
		before = v.Lineage()
	}
	for _, l := range c.layers {
		if l.id.seq > op.UpTo {
			break
		}
		keep := reached[l]
		if keep == nil {
			keep = new(blockSet)
		}
		l.each(func(i int, p *part) { s.freeLater(l.id, i, p.data&^keep[i]) })
		if l.keepOnly(keep) {
			l.stamped(by)
			sh.changed(c, l)
		}
	}
	// No view that is left shows anything else now, but resolutions of views
	// that are gone may refer to what has been purged.
	sh.dropDependents(c)
	sh.trim()
	return nil
}

// extension returns the part of a lineage whose reach has to be worked out
// when that of the one before it is known. Of two snapshots in a row that is
// what lies between them: where the younger one finds a block further back, the
// older one has found the same there. So a thousand snapshots cost no more than
// their layers.
func extension(before, lineage chunk.Lineage) chunk.Lineage {
	n := len(lineage)
	if n == 0 || len(before) != n || !slices.Equal(before[:n-1], lineage[:n-1]) {
		return lineage
	}
	last, next := before[n-1], lineage[n-1]
	if last.From != next.From || last.To >= next.To {
		return lineage
	}
	return chunk.Lineage{{From: last.To + 1, To: next.To}}
}

// reach adds the blocks of c that a lineage reaches, by layer.
func reach(c *column, lineage chunk.Lineage, reached map[*layer]*blockSet) {
	unresolved := allBlocks()
	eachSeen(c, lineage, func(l *layer) {
		set := reached[l]
		if set == nil {
			set = new(blockSet)
			reached[l] = set
		}
		l.each(func(i int, p *part) {
			set[i] |= p.has() & unresolved[i]
			unresolved[i] &^= p.has()
		})
	})
}

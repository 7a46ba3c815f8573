package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// The database "meta.db" (bbolt) holds what checkpoints save. Its version is
// that of the file "format". Keys are big-endian, so that they sort; values
// little-endian. There is a bucket for each of:
//
//	parts     u64 volume, u32 chunk, u64 seq, u8 part, 0 to 63
//	            -> u64 data, u64 zero: bit i is for block 64 x part + i; u64 LSN of
//	            the last change; then for each bit of data, from the lowest on, the u32 checksum of
//	            the block: CRC32C of its content, xor layerID.mix. No value: all absent
//	layers    u64 volume, u32 chunk, u64 seq -> the digest of all its parts, 16 bytes,
//	            by which parts that are not what was saved are found out; u64 with a bit
//	            for each of its parts; u64 LSN of the last change, u32 copyset
//	copysets  u32 copyset -> u64 promised epoch, u64 epoch, u64 last, u64 commit,
//	            u64 1 if it is whole, u64 LSN up to which it is trusted if it isn't
//	tokens    u32 copyset, u64 volume -> u64 attachment, u64 sequence number
//	needless  u64 volume, u32 chunk, u64 seq
//	            -> 64 x u64: blocks of the file to be freed, a word for each part, as above
//	journal   "store" -> UUID of the store
//	          "state" -> u64 first segment, u64 segment and u64 offset up to
//	            which the rest of the database goes, u64 batch, u64 blocks with data
//	          "scrub" -> i64 start of the search for damage, seconds since 1970, or 0,
//	            u64 volume and u32 chunk where it goes on, volume 0 if it has ended
type meta struct {
	db    *bbolt.DB
	store uuid
}

const metaFile = "meta.db"

var (
	bucketParts    = []byte("parts")
	bucketLayers   = []byte("layers")
	bucketCopysets = []byte("copysets")
	bucketTokens   = []byte("tokens")
	bucketNeedless = []byte("needless")
	bucketJournal  = []byte("journal")
	keyStore       = []byte("store")
	keyState       = []byte("state")
	keyScrub       = []byte("scrub")
)

// metaMap is how much of the database is mapped from the start: growing
// beyond it waits for those who read.
const metaMap = 1 << 30

func openMeta(fs FS, store uuid, readOnly bool) (*meta, error) {
	db, err := bbolt.Open(metaFile, 0o600, &bbolt.Options{
		ReadOnly:        readOnly,
		Timeout:         time.Second,
		FreelistType:    bbolt.FreelistMapType, // saved, too: looking for free pages would take long at start
		InitialMmapSize: metaMap,
		OpenFile: func(name string, _ int, _ os.FileMode) (*os.File, error) {
			return fs.Database(name)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", metaFile, err)
	}
	return &meta{db, store}, nil
}

func (m *meta) close() error { return m.db.Close() }

// cut is the state of a store at one place of its journal.
type cut struct {
	first    uint64   // segment that the journal begins with
	applied  position // place
	batch    uint64   // number of the last batch
	used     int64    // blocks with data
	scrub    Scrub    // Began and Next of it are saved
	parts    []savedPart
	layers   []savedLayer
	columns  []*column // that the parts are of
	copysets map[chunk.CopysetID]savedCopyset
	needless map[layerID]*blockSet // in addition to what is saved
}

// savedPart is a part that has changed.
type savedPart struct {
	id    layerID
	index int
	part  *part // nil: delete it
}

// savedLayer is the sum of a layer that has changed.
type savedLayer struct {
	id   layerID
	kept uint64 // parts; 0: delete it
	sum  digest
	last stamp
}

const savedLayerLen = 36

func (l *savedLayer) encode() []byte {
	sum := l.sum.encode()
	b := binary.LittleEndian.AppendUint64(sum[:], l.kept)
	b = binary.LittleEndian.AppendUint64(b, uint64(l.last.lsn))
	return binary.LittleEndian.AppendUint32(b, uint32(l.last.copyset))
}

// decodeLayer is the inverse of encode, for the layer of a key.
func decodeLayer(k, v []byte) (l savedLayer, ok bool) {
	if len(k) != layerKeyLen || len(v) != savedLayerLen {
		return l, false
	}
	le := binary.LittleEndian
	return savedLayer{
		id:   parseLayerKey(k),
		sum:  digest{le.Uint64(v), le.Uint64(v[8:])},
		kept: le.Uint64(v[16:]),
		last: stamp{chunk.CopysetID(le.Uint32(v[32:])), chunk.LSN(le.Uint64(v[24:]))},
	}, true
}

// savedCopyset is what is saved of a history.
type savedCopyset struct {
	promised, epoch chunk.Epoch
	last, commit    chunk.LSN
	whole           bool
	trusted         chunk.LSN
	replaced        bool                           // there are no other tokens
	tokens          map[chunk.VolumeID]chunk.Token // those that have changed
}

// save makes c the state of the database, in one transaction.
func (m *meta) save(c *cut) error {
	err := m.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketParts, bucketLayers, bucketCopysets, bucketTokens, bucketNeedless, bucketJournal} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		if err := saveParts(tx.Bucket(bucketParts), c.parts); err != nil {
			return err
		}
		if err := saveLayers(tx.Bucket(bucketLayers), c.layers); err != nil {
			return err
		}
		if err := saveCopysets(tx, c.copysets); err != nil {
			return err
		}
		if err := saveNeedless(tx.Bucket(bucketNeedless), c.needless); err != nil {
			return err
		}
		var b []byte
		for _, x := range []uint64{c.first, c.applied.segment, uint64(c.applied.off), c.batch, uint64(c.used)} {
			b = binary.LittleEndian.AppendUint64(b, x)
		}
		bucket := tx.Bucket(bucketJournal)
		return errors.Join(
			bucket.Put(keyStore, m.store[:]),
			bucket.Put(keyState, b),
			bucket.Put(keyScrub, encodeScrub(c.scrub)))
	})
	if err != nil {
		return fmt.Errorf("save to %s: %w", metaFile, err)
	}
	return nil
}

func saveParts(bucket *bbolt.Bucket, parts []savedPart) error {
	for _, p := range parts {
		key := append(layerKey(p.id), byte(p.index))
		var err error
		if p.part == nil {
			err = bucket.Delete(key)
		} else {
			err = bucket.Put(key, p.part.encode())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func saveLayers(bucket *bbolt.Bucket, layers []savedLayer) error {
	for _, l := range layers {
		var err error
		if l.kept == 0 {
			err = bucket.Delete(layerKey(l.id))
		} else {
			err = bucket.Put(layerKey(l.id), l.encode())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func saveCopysets(tx *bbolt.Tx, copysets map[chunk.CopysetID]savedCopyset) error {
	le := binary.LittleEndian
	for id, c := range copysets {
		key := binary.BigEndian.AppendUint32(nil, uint32(id))
		b := le.AppendUint64(nil, uint64(c.promised))
		b = le.AppendUint64(b, uint64(c.epoch))
		b = le.AppendUint64(b, uint64(c.last))
		b = le.AppendUint64(b, uint64(c.commit))
		whole := uint64(0)
		if c.whole {
			whole = 1
		}
		b = le.AppendUint64(b, whole)
		b = le.AppendUint64(b, uint64(c.trusted))
		if err := tx.Bucket(bucketCopysets).Put(key, b); err != nil {
			return err
		}
		if c.replaced {
			if err := deletePrefix(tx.Bucket(bucketTokens), key[:4]); err != nil {
				return err
			}
		}
		for volume, token := range c.tokens {
			b := le.AppendUint64(nil, token.Attachment)
			b = le.AppendUint64(b, uint64(token.Seq))
			key := binary.BigEndian.AppendUint64(key[:4:4], uint64(volume))
			if err := tx.Bucket(bucketTokens).Put(key, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func deletePrefix(bucket *bbolt.Bucket, prefix []byte) error {
	cursor := bucket.Cursor()
	for k, _ := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = cursor.Seek(prefix) {
		if err := bucket.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func saveNeedless(bucket *bbolt.Bucket, needless map[layerID]*blockSet) error {
	for id, more := range needless {
		set := *more
		if old := bucket.Get(layerKey(id)); len(old) == 8*parts {
			for i := range set {
				set[i] |= binary.LittleEndian.Uint64(old[8*i:])
			}
		}
		b := make([]byte, 0, 8*parts)
		for _, word := range set {
			b = binary.LittleEndian.AppendUint64(b, word)
		}
		if err := bucket.Put(layerKey(id), b); err != nil {
			return err
		}
	}
	return nil
}

// forgetNeedless records that the blocks have been freed.
func (m *meta) forgetNeedless() error {
	err := m.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(bucketNeedless); err != nil {
			return err
		}
		_, err := tx.CreateBucket(bucketNeedless)
		return err
	})
	if err != nil {
		return fmt.Errorf("save to %s: %w", metaFile, err)
	}
	return nil
}

// load returns what was saved, but for the parts.
func (m *meta) load() (*cut, error) {
	c := &cut{copysets: make(map[chunk.CopysetID]savedCopyset), needless: make(map[layerID]*blockSet)}
	le, be := binary.LittleEndian, binary.BigEndian
	err := m.db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketJournal)
		if bucket == nil {
			return fmt.Errorf("%w: %s is empty", ErrDamaged, metaFile)
		}
		if !bytes.Equal(bucket.Get(keyStore), m.store[:]) {
			return fmt.Errorf("%w: %s belongs to another store", ErrDamaged, metaFile)
		}
		b := bucket.Get(keyState)
		if len(b) != 40 {
			return badMeta(bucketJournal)
		}
		c.first, c.batch, c.used = le.Uint64(b), le.Uint64(b[24:]), int64(le.Uint64(b[32:]))
		c.applied = position{le.Uint64(b[8:]), int64(le.Uint64(b[16:]))}
		var ok bool
		if c.scrub, ok = decodeScrub(bucket.Get(keyScrub)); !ok {
			return badMeta(bucketJournal)
		}
		err := tx.Bucket(bucketCopysets).ForEach(func(k, v []byte) error {
			if len(k) != 4 || len(v) != 48 {
				return badMeta(bucketCopysets)
			}
			c.copysets[chunk.CopysetID(be.Uint32(k))] = savedCopyset{
				promised: chunk.Epoch(le.Uint64(v)),
				epoch:    chunk.Epoch(le.Uint64(v[8:])),
				last:     chunk.LSN(le.Uint64(v[16:])),
				commit:   chunk.LSN(le.Uint64(v[24:])),
				whole:    le.Uint64(v[32:]) != 0,
				trusted:  chunk.LSN(le.Uint64(v[40:])),
				tokens:   make(map[chunk.VolumeID]chunk.Token),
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = tx.Bucket(bucketTokens).ForEach(func(k, v []byte) error {
			if len(k) != 12 || len(v) != 16 || c.copysets[chunk.CopysetID(be.Uint32(k))].tokens == nil {
				return badMeta(bucketTokens)
			}
			token := chunk.Token{Attachment: le.Uint64(v), Seq: chunk.Seq(le.Uint64(v[8:]))}
			c.copysets[chunk.CopysetID(be.Uint32(k))].tokens[chunk.VolumeID(be.Uint64(k[4:]))] = token
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketNeedless).ForEach(func(k, v []byte) error {
			if len(k) != layerKeyLen || len(v) != 8*parts {
				return badMeta(bucketNeedless)
			}
			set := new(blockSet)
			for i := range set {
				set[i] = le.Uint64(v[8*i:])
			}
			c.needless[parseLayerKey(k)] = set
			return nil
		})
	})
	return c, err
}

func encodeScrub(s Scrub) []byte {
	var began int64
	if !s.Began.IsZero() {
		began = s.Began.Unix()
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(began))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Next.Volume))
	return binary.LittleEndian.AppendUint32(b, s.Next.Index)
}

func decodeScrub(b []byte) (s Scrub, ok bool) {
	if len(b) != 20 {
		return Scrub{}, false
	}
	if began := int64(binary.LittleEndian.Uint64(b)); began != 0 {
		s.Began = time.Unix(began, 0)
	}
	s.Next = chunk.Ref{Volume: chunk.VolumeID(binary.LittleEndian.Uint64(b[8:])), Index: binary.LittleEndian.Uint32(b[16:])}
	return s, true
}

func badMeta(bucket []byte) error {
	return fmt.Errorf("%w: %s, bucket %s", ErrDamaged, metaFile, bucket)
}

const layerKeyLen = 20

func layerKey(id layerID) []byte {
	return binary.BigEndian.AppendUint64(refKey(id.ref), uint64(id.seq))
}

func refKey(ref chunk.Ref) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, layerKeyLen+1), uint64(ref.Volume))
	return binary.BigEndian.AppendUint32(b, ref.Index)
}

func parseLayerKey(k []byte) layerID {
	be := binary.BigEndian
	return layerID{
		chunk.Ref{Volume: chunk.VolumeID(be.Uint64(k)), Index: be.Uint32(k[8:])},
		chunk.Seq(be.Uint64(k[12:])),
	}
}

// column returns the layers of a chunk, ascending by seq.
func (m *meta) column(ref chunk.Ref) ([]*layer, error) {
	var layers []*layer
	err := m.db.View(func(tx *bbolt.Tx) error {
		prefix := refKey(ref)
		cursor := tx.Bucket(bucketParts).Cursor()
		for k, v := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = cursor.Next() {
			if len(k) != layerKeyLen+1 || k[layerKeyLen] >= parts {
				return badMeta(bucketParts)
			}
			id := parseLayerKey(k)
			if len(layers) == 0 || layers[len(layers)-1].id != id {
				layers = append(layers, &layer{id: id})
			}
			p, ok := decodePart(v)
			if !ok {
				return badMeta(bucketParts)
			}
			layers[len(layers)-1].restore(int(k[layerKeyLen]), p)
		}
		for _, l := range layers {
			key := layerKey(l.id)
			saved, ok := decodeLayer(key, tx.Bucket(bucketLayers).Get(key))
			if !ok || saved.sum != l.sum || saved.kept != l.kept {
				return fmt.Errorf("%w: %v has other parts than were saved", badMeta(bucketParts), l.id)
			}
			l.last = saved.last
		}
		return nil
	})
	return layers, err
}

// layers returns what is saved of the layers of a chunk, ascending by seq.
func (m *meta) layers(ref chunk.Ref) ([]savedLayer, error) {
	var layers []savedLayer
	err := m.db.View(func(tx *bbolt.Tx) error {
		prefix := refKey(ref)
		cursor := tx.Bucket(bucketLayers).Cursor()
		for k, v := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = cursor.Next() {
			l, ok := decodeLayer(k, v)
			if !ok {
				return badMeta(bucketLayers)
			}
			layers = append(layers, l)
		}
		return nil
	})
	return layers, err
}

// chunksOf calls fn for each chunk behind after that has layers of a copyset,
// ascending, until fn returns false.
func (m *meta) chunksOf(copyset chunk.CopysetID, after chunk.Ref, fn func(chunk.Ref) bool) error {
	return m.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketLayers).Cursor()
		last := after
		for k, v := cursor.Seek(refKey(after)); k != nil; k, v = cursor.Next() {
			l, ok := decodeLayer(k, v)
			switch {
			case !ok:
				return badMeta(bucketLayers)
			case l.last.copyset != copyset || l.id.ref == last:
			case !fn(l.id.ref):
				return nil
			default:
				last = l.id.ref
			}
		}
		return nil
	})
}

// refs calls fn for each chunk of a volume that has layers, ascending.
func (m *meta) refs(volume chunk.VolumeID, fn func(chunk.Ref)) error {
	return m.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketParts).Cursor()
		next := chunk.Ref{Volume: volume}
		for {
			k, _ := cursor.Seek(refKey(next))
			if k == nil {
				return nil
			}
			if len(k) != layerKeyLen+1 {
				return badMeta(bucketParts)
			}
			ref := parseLayerKey(k).ref
			if ref.Volume != volume {
				return nil
			}
			fn(ref)
			next.Index = ref.Index + 1
			if next.Index == 0 {
				return nil
			}
		}
	})
}

// volumes returns the volumes that have layers, ascending.
func (m *meta) volumes() ([]chunk.VolumeID, error) {
	var volumes []chunk.VolumeID
	err := m.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketParts).Cursor()
		for next := (chunk.Ref{}); ; next.Volume++ {
			k, _ := cursor.Seek(refKey(next))
			if k == nil {
				return nil
			}
			if len(k) != layerKeyLen+1 {
				return badMeta(bucketParts)
			}
			next.Volume = parseLayerKey(k).ref.Volume
			volumes = append(volumes, next.Volume)
			if next.Volume == math.MaxUint64 {
				return nil
			}
		}
	})
	return volumes, err
}

// savedPartLen is the length of a part in the database, but for its checksums.
const savedPartLen = 24

// encode returns the value of p in the database.
func (p *part) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0, savedPartLen+4*bits.OnesCount64(p.data))
	b = le.AppendUint64(b, p.data)
	b = le.AppendUint64(b, p.zero)
	b = le.AppendUint64(b, uint64(p.changed))
	for m := p.data; m != 0; m &= m - 1 {
		b = le.AppendUint32(b, p.sums[bits.TrailingZeros64(m)])
	}
	return b
}

func decodePart(b []byte) (*part, bool) {
	le := binary.LittleEndian
	if len(b) < savedPartLen {
		return nil, false
	}
	p := &part{data: le.Uint64(b), zero: le.Uint64(b[8:]), changed: chunk.LSN(le.Uint64(b[16:]))}
	if p.data&p.zero != 0 || p.has() == 0 || len(b) != savedPartLen+4*bits.OnesCount64(p.data) {
		return nil, false
	}
	b = b[savedPartLen:]
	for m := p.data; m != 0; m &= m - 1 {
		p.sums[bits.TrailingZeros64(m)] = le.Uint32(b)
		b = b[4:]
	}
	return p, true
}

package chunk

// Range is a run of sequence numbers, both ends included.
type Range struct {
	From, To Seq
}

// Lineage is the set of a volume's sequence numbers that a view sees, as
// ranges in ascending order that neither overlap nor touch. It is immutable:
// methods return new ones. Every lineage begins at 0, the base.
type Lineage []Range

// NewLineage is the lineage of the head of a new volume: everything.
func NewLineage() Lineage { return Lineage{{0, MaxSeq}} }

// Freeze is the lineage as of seq: what a snapshot that froze seq sees.
func (l Lineage) Freeze(seq Seq) Lineage {
	var frozen Lineage
	for _, r := range l {
		if r.From > seq {
			break
		}
		frozen = append(frozen, Range{r.From, min(r.To, seq)})
	}
	return frozen
}

// Rollback is the lineage of a head that continues from the frozen lineage l
// and writes at next, which must lie above everything written before.
func (l Lineage) Rollback(next Seq) Lineage {
	head := append(Lineage(nil), l...)
	if n := len(head); n > 0 && head[n-1].To+1 == next {
		head[n-1].To = MaxSeq
		return head
	}
	return append(head, Range{next, MaxSeq})
}

// Sees reports whether the layer of seq belongs to the view.
func (l Lineage) Sees(seq Seq) bool {
	for _, r := range l {
		if seq <= r.To {
			return seq >= r.From
		}
	}
	return false
}

// valid reports whether l is in the form that the type promises.
func (l Lineage) valid() bool {
	if len(l) == 0 || l[0].From != 0 {
		return false
	}
	for i, r := range l {
		if r.From > r.To {
			return false
		}
		if i > 0 && (l[i-1].To == MaxSeq || r.From <= l[i-1].To+1) {
			return false
		}
	}
	return true
}

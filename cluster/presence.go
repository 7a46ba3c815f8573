package cluster

import "time"

// Presence is how the leader sees a chunkserver that is connected to it.
type Presence struct {
	Silent     time.Duration // since its last sign of life
	Used, Free uint64        // bytes of its disk, as of then
}

// Verdict tells whether the copies of a copyset are equal.
type Verdict uint8

const (
	// Identical: all copies in sync have the same layers.
	Identical Verdict = 1 + iota
	// Differing: they have the same history but not the same layers.
	Differing
	// Unsettled: they were written all the time, so that no moment was
	// found at which they have the same history.
	Unsettled
	// Unheard: a chunkserver with a copy in sync gave no answer.
	Unheard
)

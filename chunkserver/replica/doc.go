// Package replica is the replication protocol of one copyset at one of its
// chunkservers: a state machine, [Core], that is told what happened and
// answers what to do. It has no goroutine, clock, randomness or I/O; a shell
// around it owns those. So the code that runs in production is the code that
// the simulator in this package's tests drives through thousands of schedules.
//
// # Roles
//
// The metadata servers decide by consensus on the configuration of a copyset,
// a [chunk.Copyset]: its members and its primary, numbered by an epoch. Under
// one configuration the primary orders all operations: it gives each the next
// LSN, journals it, and sends it to the other members at the same time. It
// acknowledges an operation when it is durable at every member that is in
// sync, itself included: it is then committed. So each in-sync member alone
// holds everything that was ever acknowledged. Other members take no part.
//
// Reads are served by the primary only. A store shows what is applied, which
// may not be committed and could still vanish with this chunkserver; so a
// read is executed first and then asked about with [Read], and its answer
// leaves when everything that it may have seen is committed.
//
// A volume has one writer at a time, whose token its operations carry. The
// primary refuses a token below the largest that it has ordered. So once an
// OpFence of a larger token is committed, every earlier writer is shut out, in
// all epochs to come: the token is part of the history.
//
// # Epochs
//
// Failure of a primary is mended in three steps, which the metadata leader
// takes. It seals the old epoch: each member promises, durably, to refuse
// smaller epochs from then on, and tells the end of its history. It commits
// the next configuration, with the member of the largest (LastEpoch, Last) as
// primary. And it tells the members ([Configure]).
//
// The new primary probes the others, which tell what they have; sends each
// what it lacks, from the tail of entries above the commit point that every
// member keeps in memory; and serves nothing before its whole history is
// durable at all in-sync members. Nothing is ever undone. A member that lacks
// what it acknowledged, or has what it can't have, is reported as suspect; the
// copyset then waits for a configuration without it.
//
// Nothing of a smaller epoch survives the adoption of a larger one: waiting
// clients are sent away, acknowledgements are counted anew, and a primary
// that goes on as primary probes again like a new one.
//
// A process that was restarted takes part in nothing until a configuration
// names its present incarnation. So it never resumes an epoch of which it has
// forgotten half.
//
// # Invariants
//
//  1. An in-sync member's history is a prefix of the primary's.
//  2. What is committed is durable at every in-sync member.
//  3. An epoch and an LSN name one operation; only the epoch's primary makes
//     it up.
//  4. Having promised an epoch, a member accepts, acknowledges and serves
//     nothing under a smaller one, also after a restart.
//  5. A token that has been ordered is the smallest that its volume accepts.
//  6. The answer to a read contains all operations that were acknowledged
//     before it began, and none that can still be lost.
//
// # The shell
//
// The shell calls [Core.Step] with one [Event] after the other and carries out
// the [Effects] before the next. Its connections may lose what was sent when
// they break, may deliver late, and may deliver again what was sent before on
// an older one; they must not lose one message and deliver a later one without
// a [PeerUp] at the sender. It tells members apart for certain, and bounds what
// clients have under way, and thereby the tail.
package replica

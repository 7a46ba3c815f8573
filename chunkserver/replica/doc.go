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
// holds everything that was ever acknowledged. A member that is syncing gets the
// same stream, and is not waited for. All others take no part.
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
// # Resync
//
// A member that was away may have any content, and a history that went another
// way; or nothing. A configuration names it as syncing. The primary then leads
// it from whatever it has to what all have, while operations go on:
//
//   - It puts the member on the stream ([Reset], after [Tokens]): the member
//     gives up its history for one that goes on behind LSN R, the end of the
//     primary's, and is sent every entry from there on. Entries up to R it never
//     gets; their effects it pulls.
//   - The member's shell ([Core.Pulling]) compares what may differ, part by part,
//     with what the primary has. For each part the primary's shell asks for a
//     [Hold]: no write to the part is ordered until [Release], which sends a
//     [Copy] of what differs. It takes its place in the stream, so it contains
//     the effects of all entries before it, and undoes none behind it.
//   - Until then the member applies entries to content that may be old. That is
//     harmless for those that say themselves what a block is to be; flattening
//     and purging depend on what is there, so the primary refuses them as long as
//     anybody is syncing.
//   - When the member has everything, the primary is told that it is needed
//     ([Need]), and commits nothing without it from then on. Once R is
//     committed and the member has acknowledged all that is, it is synced. The
//     primary reports that ([Core.Report]), and the metadata leader makes it a
//     member in sync with the next configuration, whenever it likes: as the
//     leader may have done so already, nothing but a configuration ends the need
//     for a member that was synced once.
//
// Each connection of the primary to the member begins a new round: a member
// that is not synced is put on the stream anew, compares anew, and is not needed
// any more. That is cheap, as what is equal is not sent. One that is synced goes
// on with its history like a member in sync. What belongs to another round comes
// late, and is dropped.
//
// A member that is syncing must not cost the others more than a little. If it is
// too far behind the stream, operations wait; but if it makes no progress in a
// few ticks, its stream ends, and it is reported as lagging, for the leader to
// put it out. So is a member in sync that keeps operations waiting: it stays
// needed until the leader has done so.
//
// A store knows up to which LSN its content is that of the history: its commit
// point when it was last in sync. What neither side has changed since is not
// compared. The store is told when it can be trusted again ([Effects].Trust). A
// resync that is cut off leaves content of which some is new; so the next one
// must not trust more than this one did.
//
// # Invariants
//
//  1. An in-sync member's history is a prefix of the primary's.
//  2. What is committed is durable at every in-sync member, and at every one
//     that was reported as synced: as entries, or as their effects.
//  3. An epoch and an LSN name one operation; only the epoch's primary makes
//     it up.
//  4. Having promised an epoch, a member accepts, acknowledges and serves
//     nothing under a smaller one, also after a restart.
//  5. A token that has been ordered is the smallest that its volume accepts.
//  6. The answer to a read contains all operations that were acknowledged
//     before it began, and none that can still be lost.
//  7. Members in sync with the same history have the same content, however they
//     came by it.
//  8. A member that is syncing is waited for only once it is needed, and never
//     stands for a second copy.
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

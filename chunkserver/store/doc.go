// Package store keeps the chunks of one chunkserver in one directory. It knows
// nothing of networks or replication: it executes the operations of copysets
// and answers reads.
//
// # Layers and views
//
// What is written to a chunk while its volume is at one sequence number is a
// layer: a sparse file in which block b lies at b times the block size. A
// block of a layer is absent, or holds data, or is zero, which hides what lies
// below. A [chunk.View] shows, of each block, what the youngest layer in its
// lineage has; failing that what its parent shows; failing that zeros. So a
// snapshot costs nothing here, and the first write after one costs what every
// write costs: it goes to a new layer, and nothing is copied.
//
// Which layer a block of a view comes from is worked out once per view and
// chunk, and kept right as layers change, so that depth costs nothing either.
//
// Deleting is reachability, not bookkeeping: a purge brings along the views
// that are left, and frees each block that none of them reaches.
//
// # Durability
//
// All operations of all copysets go, with their data, to one journal. What
// arrives while a batch is being synced becomes the next batch; so one sync
// acknowledges many operations. Only then are they applied to the layers,
// through the page cache. A checkpoint syncs the layers, saves their metadata
// in a database, and lets the journal begin later. Opening a store executes
// the journal again from there on. Operations are physical redo: executing
// them again on files that have some of their effects already ends in the
// same state.
//
// What must hold, and where it is kept:
//
//   - An entry is acknowledged after the one sync of its batch (journal.go).
//   - Files of layers are written from synced entries only. Hence what a crash
//     leaves in them that the database does not know, replay writes again.
//   - A torn batch can only be the last. A bad record with a later batch
//     behind it is damage: Open says so and changes nothing (recover.go).
//   - Metadata is saved as of one place in the journal, and only after all
//     files written up to there have been synced (checkpoint.go).
//   - Nothing is punched or deleted before the metadata that no longer refers
//     to it is durable: a replayed flatten may have to copy it (checkpoint.go).
//   - A segment is freed only if a checkpoint covers it, and all its entries
//     are committed or have been copied to the end of the journal: so the
//     entries that other members may lack can always be sent again (tail.go).
//   - Once a write or sync has failed nothing is acknowledged any more; the
//     kernel may have dropped what it could not write (Store.fail).
//   - All blocks are read again and again, and what is found damaged is told,
//     so that it can be repaired while others still have it (scrub.go).
//   - What is copied from another member takes its place among the operations
//     in the journal, and counts as changed by the last of them (resync.go).
//   - A block is returned only if it matches its checksum, which is stored
//     apart from it and mixed with its place (layer.go). Flatten carries
//     checksums along instead of computing them.
//
// # Directory
//
//	format                          whose directory it is            format.go
//	lock                            locked while it is in use
//	meta.db                         what checkpoints save             meta.go
//	journal/<number>.seg            journal segments                  segment.go, record.go
//	journal/<number>.free           segments to be reused
//	layers/<volume>/<chunk>.<seq>   blocks                            layer.go
//
// # Limits
//
//   - Damage to the very last batch can't be told from a batch torn by a
//     crash. The other members of the copyset know better: its history then
//     ends before what they know to be committed.
//   - Tokens of volumes are kept for good, also when the volume is purged.
//   - Data is written twice, to the journal and to its layer, also where it
//     fills a new volume in sequence. Writing it to the layer at once would
//     halve that, but a file that grows takes so long to sync that on ext4 the
//     acknowledgement of 64 KiB would come 2.6 times as late, of 4 MiB 1.3 times.
//   - A purge of a chunk is one step, as long as that takes: some milliseconds
//     with a thousand snapshots. Dropping a copyset is one, too: nothing else is
//     executed while its layers are taken out of the metadata.
//   - Every block is compared with its checksum whenever it is read, also when
//     the page cache has it: of 1 MiB read from memory that takes longer than
//     the reading itself.
package store

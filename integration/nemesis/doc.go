// Package nemesis tries the promises of localsnap against faults: real
// processes, each in a network namespace of its own, are killed, stopped, cut
// off and run out of disk while clients write, and nothing that was answered
// may be lost, changed, or late by more than is promised. There are tests only.
//
// A fleet is a cluster of processes on a network. A writer stamps sectors and
// keeps a ledger of what was answered; fio, which nobody here wrote, verifies
// beside it. All runs in mount, process and network namespaces of the test
// process, so that nothing is left behind however that ends.
package nemesis

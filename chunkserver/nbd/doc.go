// Package nbd exports block devices over the Network Block Device protocol,
// server side, to any client: qemu, libnbd, the kernel's, fio.
//
// A connection has two phases. In the negotiation the client asks, one option
// at a time, what there is and how to talk; GO or EXPORT_NAME opens a [Device]
// of [Exports]. In the transmission the client sends requests without waiting;
// each runs in a goroutine of its own and is answered when it is done, so a
// slow read does not hold up a fast one. Whoever finishes while nobody sends
// becomes the sender of all replies that gather meanwhile: one system call
// answers many requests, and a lone reply waits for nobody.
//
// # Invariants
//
//   - No length that a client sends takes memory before it has been compared
//     with a limit. What a connection has in flight is bounded in requests and
//     in bytes; beyond either bound nothing more is read from it.
//   - A reply's header is made after the device has answered. An error of the
//     device is a reply with the protocol's number for it and never ends the
//     connection; what ends it is only what leaves the two sides out of step.
//   - A device sees requests within its size only, and no change if it is
//     read-only. It sees any offset and any length: alignment is its business.
//   - A request's buffer belongs to the connection's reader until it is handed
//     on, to the request's goroutine until the reply is queued, and to the
//     sender until the reply is out; then it goes back to the pool. The device
//     has it for the length of a call.
//   - Close of the device is called once for each successful Open, after the
//     last of the connection's requests has returned.
//   - A panic of a device is not recovered.
//
// # How a connection ends
//
// Whether the client sends DISC, hangs up, speaks garbage, or the server's
// context ends: reading stops, requests in flight, writes above all, go on for
// at most [Server.DrainTimeout] and are answered if the client still listens.
// Then their contexts end and the connection is closed; whether those were done
// the client can't know. Requests that were not begun are not answered.
//
// # Limits
//
//   - The fixed newstyle handshake only, with neither TLS nor extended headers.
//   - The metadata context base:allocation only; no CACHE, no RESIZE.
//   - READ and WRITE up to 32 MiB, as the block size information says.
//   - The size of an export is that of the moment of opening.
//   - A client that stops taking replies keeps its connection, as a paused
//     virtual machine must; it costs its own bound of memory.
package nbd

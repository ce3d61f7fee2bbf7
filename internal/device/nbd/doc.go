// Package nbd shows a block.Device to applications as an NBD export: over a Unix socket to the programs of this host (qemu, nbdkit tools,
// the kernel's nbd driver), or over TCP. A Server has one export; a Hub serves many of them, chosen by name, over one listener. The protocol
// document is doc/proto.md of the NetworkBlockDevice/nbd project; spoken is the fixed newstyle handshake with structured replies and the
// meta context base:allocation.
//
// What it guarantees:
//
//   - A reply is sent only after the Device has completed the request, so the Device's contract (volatile cache, flush, FUA) reaches the
//     client unchanged. A flush received after the reply to a write covers that write, whichever connection either came from.
//   - Requests complete in any order; so clients that overlap their own requests get what they deserve, but harm nobody else.
//   - Nothing a client sends makes the server panic, allocate before it has checked a bound, or hold up another client: a client that sends
//     half requests or does not take its replies stops only its own connection. See budget for how the memory is shared out.
//   - No goroutine and no allocation per request on the hot path: see conn.
//
// What it does not do: no old style handshake, no extended headers, no resize notification (the protocol has none that clients
// implement: new connections see the new size, old ones may use it). Who may connect is decided by the socket's mode or the TLS
// configuration, for all exports of a Hub alike; without TLS a Hub listens on loopback only, and there every user of this host may connect.
package nbd

// Package transfer pulls entries of one director's table into another's over TCP: a whole table when a director joins, and what differs
// when mirrors are audited or compared. The wire format is package proto/transfer.
//
// A [Server] teaches. It reads its table through a [Source] that locks for one bucket at a time, never while something is written: a slow
// pupil costs its own session, not the mirror. [Pull] is the other side.
//
// # Who is believed
//
// Each side contributes a nonce, and each direction has a key of its own, derived from the key file's and both hellos. So a hello that comes back,
// a session that was recorded, or frames that are left out or moved fail the first tag that they meet. The teacher does and says nothing for
// a client before its first frame has proved that it knows the key; connections that have not are few, short-lived and cheap.
//
// # What a peer can do
//
// Nothing that a peer says decides how much memory is used or how long something lasts: payloads, origins, pages and entries are
// bounded, each frame has its deadline, and so has the session. An error ends the session. What was entered before stays, as every
// entry carries its stamp and an older one never replaces a newer one.
package transfer

// Package inspect shows sync traffic to people and scripts: the kernel's messages and those of this suite, from a capture file
// or live from an interface.
//
// The way of a packet: a source (file.go, live.go) delivers it with time and link; dissect.go takes link, IP and UDP headers off and
// reassembles fragments; message.go decodes the payload; text.go and line.go print it. Nothing that is on the
// wire stops a run: what cannot be decoded is shown with the reason.
package inspect

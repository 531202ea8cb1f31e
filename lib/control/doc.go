// Package control is the daemons' control socket: JSON over HTTP over a unix
// socket that only its owner may open. The daemons serve it, saructl asks it.
//
// A reply is either one JSON value ([Server.HandleJSON]) or a stream of values,
// one a line ([Server.HandleStream]), which neither side ever holds in memory as
// a whole: a table of a million connections can be listed. What takes its time
// ([Server.HandleWork]) shows its progress in such lines. What changes something
// is a POST. status.go, actions.go, share.go (syncd) and coordinator.go (saru) hold the
// types of the values. They are a contract with other people's scripts: fields are
// added, never renamed.
package control

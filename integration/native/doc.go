// Package native runs farms of real saru processes natively, in network namespaces of this machine: what saru and its filter do needs no IPVS. A UDP
// responder on each director stands for it. What is measured here are packets: who answers them, and for how long nobody does.
//
// It is for tests only; it has no code but theirs.
package native

package engine

import (
	"maps"
	"time"

	"saru/lib/peer"
)

const (
	// maxNames bounds the names that are kept for status: whoever may send unsigned messages can invent sources. Peers have theirs beyond it.
	maxNames = 1024
	// forgetAgain is how long after names were forgotten it is looked again for some that are of no use.
	forgetAgain = time.Second
	// maxPartners bounds the accounts of peers: of those that the set of peers has forgotten, as hosts are named anew, as many are kept as it
	// has. Whether a peer took something over while it could not be heard is known no longer.
	maxPartners = 2 * peer.MaxPeers
)

// call keeps the name of an origin for status, if there is room.
func (e *Engine) call(id peer.ID, name string) {
	if _, known := e.names[id]; known || len(e.names) < maxNames || e.forgetNames() {
		e.names[id] = name
	}
}

// callPeer keeps the name of a peer.
func (e *Engine) callPeer(id peer.ID, name string) {
	e.call(id, name)
	e.names[id] = name
}

// forgetNames makes room by forgetting the names of those of whom there is neither an entry nor a peer, and reports whether there is room.
func (e *Engine) forgetNames() bool {
	if e.now.Sub(e.forgot) < forgetAgain {
		return false
	}
	e.forgot = e.now
	maps.DeleteFunc(e.names, func(id peer.ID, _ string) bool {
		return id != e.self && e.table.Origin(id) == 0 && e.peers.Get(id) == nil
	})
	return len(e.names) < maxNames
}

// forgetPartners forgets the accounts of peers that are in the set of peers no longer, and were heard the longest ago.
func (e *Engine) forgetPartners() {
	for len(e.partners) > maxPartners {
		var oldest peer.ID
		found := false
		for id, pa := range e.partners {
			if e.peers.Get(id) == nil && (!found || pa.heard < e.partners[oldest].heard) {
				oldest, found = id, true
			}
		}
		if !found {
			return
		}
		delete(e.partners, oldest)
	}
}

// origin returns the name of an entry's origin.
func (e *Engine) origin(id peer.ID) string {
	if n, ok := e.names[id]; ok {
		return n
	}
	return id.String()
}

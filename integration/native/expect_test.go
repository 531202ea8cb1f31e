package native

import "testing"

// TestExpect founds a farm by the majority of the directors that are expected: the founding table goes over the wire like any other.
func TestExpect(t *testing.T) {
	f := newFarm(t, 3, "--expect", "3")
	f.settled()
}

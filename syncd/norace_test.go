//go:build !race

package syncd

const raceEnabled = false

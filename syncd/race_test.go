//go:build race

package syncd

// raceEnabled lowers rates: the race detector makes everything several times slower.
const raceEnabled = true

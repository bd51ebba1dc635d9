//go:build race

package faults

// raceEnabled has replicas built with the race detector when this package is.
const raceEnabled = true

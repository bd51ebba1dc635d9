//go:build !race

package policy

// raceEnabled tells that each step costs ten times as much here.
const raceEnabled = false

//go:build race

package main

// raceEnabled tells that each step costs ten times as much here.
const raceEnabled = true

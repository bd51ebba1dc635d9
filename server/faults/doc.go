// Package faults holds Keystile to what it promises under load and faults: it breaks
// real servers under real replicas, and measures. It has tests alone.
//
// `make faults` runs the full form of every row, which judges each figure, and prints
// one table. `go test` runs the quick form, which judges codes and counts and never a
// time that a busy machine could spoil.
package faults

//go:build race

package cose

// raceDetector says whether the race detector watches: then sync.Pool drops at
// random, and allocations say nothing.
const raceDetector = true

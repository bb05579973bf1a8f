//go:build !race

package oscore

// raceDetector says whether the race detector watches: then sync.Pool drops at
// random, and allocations say nothing.
const raceDetector = false

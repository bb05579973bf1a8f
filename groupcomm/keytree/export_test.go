package keytree

// Step is the one-way step, for those who spy.
func Step(key []byte) []byte { return step(key) }

// Package soak has a test that loads the endpoint for long, with crashes and
// restarts of its process, moves of its peers, and a tap on the wire.
package soak

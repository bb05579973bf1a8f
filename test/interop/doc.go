// Package interop has the tests against implementations that are not ours. They
// need what .ci/run installs for its step interop, which runs them with the tag
// interop; without the tag there is nothing to run.
package interop

// Package broker tests the delivery over MQTT with brokers of others: the same
// scenarios with each. The tests have the build tag interop, since they need the
// brokers, which the CI steps interop and brokers install.
package broker

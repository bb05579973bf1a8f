// Package broker tests the delivery over MQTT with brokers of others. The tests
// have the build tag interop: they need mosquitto, which the CI step of that
// name installs.
package broker

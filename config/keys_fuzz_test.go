package config

import "testing"

// FuzzPublicKey: a PEM file gives a key of a supported algorithm or an error.
func FuzzPublicKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, alg, err := parsePublicKey(b)
		if err == nil && (key == nil || alg == "" || key.CheckAlg(key.Alg) != nil) {
			t.Fatalf("key %v, algorithm %q", key, alg)
		}
	})
}

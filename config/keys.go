package config

// SealKeyEnv is the environment variable that holds the sealing key in place of
// a file.
const SealKeyEnv = "GROUPGATE_SEAL_KEY"

package node

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/seed4911071e/groupgate/cose"
	"github.com/seed4911071e/groupgate/durable"
)

// ClientFile is the name, inside a gateway's data directory, of the credential
// that its first run makes for `gateway node`.
const ClientFile = "node-client.json"

// maxClientFile bounds what LoadClient reads.
const maxClientFile = 64 << 10

// Client is the credential of a client of an Authorization Server: the
// pre-shared key of its DTLS association, and what it may ask for.
type Client struct {
	Identity string      // psk_identity
	Key      cose.Secret // pre-shared key
	Audience string      // of the Group Manager
	AS       string      // token endpoint, for example coaps://127.0.0.1:5684/token
}

// clientJSON is the file. The key is hexadecimal.
type clientJSON struct {
	Identity string `json:"identity"`
	Key      string `json:"key"`
	Audience string `json:"audience"`
	AS       string `json:"as"`
}

// SaveClient writes a credential to path, readable by the owner alone.
func SaveClient(path string, c Client) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("node: save client: %w", err)
	}
	body, err := json.MarshalIndent(clientJSON{c.Identity, hex.EncodeToString(c.Key.Bytes()), c.Audience, c.AS}, "", "  ")
	if err != nil {
		return fmt.Errorf("node: save client: %w", err)
	}
	if err := durable.Replace(path, append(body, '\n')); err != nil {
		return fmt.Errorf("node: save client: %w", err)
	}
	return nil
}

// LoadClient reads a credential that SaveClient wrote. A file that others can
// read is refused: its key is no secret any more.
func LoadClient(path string) (Client, error) {
	f, err := os.Open(path)
	if err != nil {
		return Client{}, fmt.Errorf("node: load client: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Client{}, fmt.Errorf("node: load client: %w", err)
	}
	if m := st.Mode(); !m.IsRegular() || m.Perm()&0o077 != 0 {
		return Client{}, fmt.Errorf("node: load client: %s has mode %v: it holds a key, so make it readable by its owner alone (chmod 600)", path, m.Perm())
	}
	body, err := io.ReadAll(io.LimitReader(f, maxClientFile))
	if err != nil {
		return Client{}, fmt.Errorf("node: load client: %w", err)
	}
	c, err := parseClient(body)
	if err != nil {
		return Client{}, fmt.Errorf("node: load client: %s: %w", path, err)
	}
	return c, nil
}

// parseClient reads the text of a credential. Its errors do not quote it.
func parseClient(body []byte) (Client, error) {
	var v clientJSON
	if err := json.Unmarshal(body, &v); err != nil {
		return Client{}, errors.New("no JSON credential") // the cause may quote the key
	}
	key, err := hex.DecodeString(v.Key)
	if err != nil {
		return Client{}, errors.New("the key is not hexadecimal")
	}
	c := Client{Identity: v.Identity, Key: cose.NewSecret(key), Audience: v.Audience, AS: v.AS}
	return c, c.validate()
}

func (c *Client) validate() error {
	switch n := len(c.Key.Bytes()); {
	case c.Identity == "":
		return errors.New("no identity")
	case n < 16 || n > 64:
		return fmt.Errorf("a key of %d bytes, 16 to 64 are usable", n)
	case c.Audience == "":
		return errors.New("no audience")
	}
	return nil
}

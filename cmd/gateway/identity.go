package main

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/seed4911071e/groupgate/admin"
)

// identityCmd tells what to pin in nodes.
type identityCmd struct {
	where
	PEM  bool `name:"pem" help:"Print the raw public key alone, as PEM."`
	JSON bool `help:"Print JSON."`
}

// Validate is called by argv.
func (c *identityCmd) Validate() error {
	if c.PEM && c.JSON {
		return errors.New("--pem does not go with --json")
	}
	return nil
}

// Run prints the identity.
func (c *identityCmd) Run(e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	id, err := client.Identity(e.ctx)
	switch {
	case err != nil:
		return err
	case len(id.RawPublicKey.SPKI) == 0:
		return withHint(errors.New("the gateway has no key yet"), "it is still starting: try again")
	case c.JSON:
		return printJSON(e.stdout, id)
	case c.PEM:
		return pem.Encode(e.stdout, &pem.Block{Type: "PUBLIC KEY", Bytes: id.RawPublicKey.SPKI})
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "raw public key (RFC 7250)")
	tellKey(w, &id.RawPublicKey)
	if cert := id.Certificate; cert != nil {
		fmt.Fprintln(w, "certificate")
		fmt.Fprintf(w, "  subject\t%s\n  valid until\t%s\n  SHA-256\t%s\n", cert.Subject, cert.NotAfter.UTC().Format("2006-01-02 15:04 UTC"), cert.SHA256)
		fmt.Fprintln(w, "key of the certificate")
		tellKey(w, &cert.Key)
	}
	return w.Flush()
}

func tellKey(w io.Writer, k *admin.PublicKeyInfo) {
	fmt.Fprintf(w, "  SubjectPublicKeyInfo\t%s\n  SHA-256\t%s\n  ni URI\t%s\n  COSE_Key\t%s\n  thumbprint (ckt)\t%s\n",
		base64.StdEncoding.EncodeToString(k.SPKI), k.SHA256, k.NI, k.COSEKey, k.Thumbprint)
}

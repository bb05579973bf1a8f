package config

import (
	"errors"
	"testing"
	"time"
)

func TestAudit(t *testing.T) {
	c, err := Parse("f", []byte("audit: {retention: 30d, max_records: 5000}\n"))
	if err != nil || c.Audit.Retention != 30*24*time.Hour || c.Audit.MaxRecords != 5000 {
		t.Errorf("%+v, %v", c.Audit, err)
	}
	_, err = Parse("f", []byte("audit:\n  retention: 1m\n  max_records: 0\n"))
	fe, ok := errors.AsType[*FaultError](err)
	if !ok || !hasFault(fe, "2", "audit.retention", "must be from 1h") || !hasFault(fe, "3", "audit.max_records", "must be from 1000") {
		t.Errorf("got %v", err)
	}
}

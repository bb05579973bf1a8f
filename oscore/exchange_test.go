package oscore

import (
	"reflect"
	"testing"
)

func TestExchangeStored(t *testing.T) {
	client, server := pair(t, both(func(p *Params) { p.IDContext = []byte("ctx") }))
	cex, sex := request(t, client, server, observed(get("a"), 0))
	first := respond(t, server, sex, observed(content("0"), 1))
	if _, err := client.UnprotectResponse(nil, &cex, first); err != nil {
		t.Fatal(err)
	}
	for _, ex := range []Exchange{cex, sex, {}} {
		b, err := ex.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var back Exchange
		if err := back.UnmarshalBinary(b); err != nil || back != ex {
			t.Errorf("%+v, %v, want %+v", back, err, ex)
		}
		for n := range b {
			if err := back.UnmarshalBinary(b[:n]); err == nil || back != ex {
				t.Errorf("%x is read as %+v", b[:n], back)
			}
		}
	}
	if cex.KIDContext() != "ctx" || !reflect.DeepEqual(sex.KID(), []byte{1}) {
		t.Errorf("%+v", cex)
	}
	for _, s := range []string{"", "80", "8541010040f600", "8548000102030405060700400000", "85411b00000100000000004000" + "00", "8541000040181000"} {
		var ex Exchange
		if err := ex.UnmarshalBinary(unhex(t, s)); err == nil {
			t.Errorf("%s is read as %+v", s, ex)
		}
	}
}

func FuzzExchange(f *testing.F) {
	ex := newExchange([]byte{1, 2}, 77, "ctx")
	b, err := ex.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var ex Exchange
		if ex.UnmarshalBinary(b) != nil {
			return
		}
		again, err := ex.MarshalBinary()
		var back Exchange
		if err != nil || back.UnmarshalBinary(again) != nil || back != ex {
			t.Errorf("%x: %+v, then %x, %+v", b, ex, again, back)
		}
	})
}

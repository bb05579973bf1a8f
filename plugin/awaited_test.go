package plugin

import "testing"

func TestAwaiting(t *testing.T) {
	g := &Gateway{}
	now, begins := g.Awaiting()
	if _, again := g.Awaiting(); now || begins == nil || again != begins {
		t.Fatal("nothing was sent yet")
	}
	end1 := g.awaited.begin()
	end2 := g.awaited.begin()
	select {
	case <-begins:
	default:
		t.Error("nobody was told")
	}
	if now, begins := g.Awaiting(); !now || begins != nil {
		t.Error("two acknowledgements are awaited")
	}
	end1()
	if now, _ := g.Awaiting(); !now {
		t.Error("one acknowledgement is awaited")
	}
	end2()
	if now, begins := g.Awaiting(); now || begins == nil {
		t.Error("no acknowledgement is awaited any more")
	}
}

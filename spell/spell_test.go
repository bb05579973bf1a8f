package spell

import (
	"strings"
	"testing"
)

func TestSuggest(t *testing.T) {
	words := []string{"group", "node", "listen", "sender-id"}
	for word, want := range map[string]string{
		"gruop": "group", "GROUP": "group", "nod": "node", "lisetn": "listen", "sender_id": "sender-id",
		"": "", "x": "", "groupgate": "", strings.Repeat("group", 100): "",
	} {
		if got := Suggest(word, words); got != want {
			t.Errorf("Suggest(%.20q) = %q, want %q", word, got, want)
		}
	}
}

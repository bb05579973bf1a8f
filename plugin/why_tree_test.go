package plugin

import (
	"strings"
	"testing"
	"time"

	"github.com/seed4911071e/groupgate/admin"
)

// What to do about a member of a key tree that lacks the newest version.
func TestTreeNext(t *testing.T) {
	n := func(v int) *int { return &v }
	now := time.Now()
	for name, tc := range map[string]struct {
		channel, catchUp string
		tree             *admin.DeliveryTree
		want             string
	}{
		"no tree any more":  {"mqtt", "", nil, "no key tree any more"},
		"no place":          {"mqtt", "no-place", &admin.DeliveryTree{}, "gets one when it asks, GET /ace-group/g"},
		"missed over MQTT":  {"mqtt", "missed-link", &admin.DeliveryTree{}, "topics of its way"},
		"missed multicast":  {"multicast", "missed-link", &admin.DeliveryTree{}, "listens to the control_group_uri"},
		"asked":             {"mqtt", "asked", &admin.DeliveryTree{}, "nothing: it asked"},
		"broker away":       {"mqtt", "", &admin.DeliveryTree{Messages: 3}, "not connected to the MQTT broker"},
		"not all published": {"mqtt", "", &admin.DeliveryTree{Messages: 3, Published: n(2)}, "2 of 3 messages"},
		"all published":     {"mqtt", "", &admin.DeliveryTree{Messages: 3, Published: n(3)}, ""},
		"not multicast":     {"multicast", "", &admin.DeliveryTree{Messages: 3}, "was not multicast yet"},
		"multicast":         {"multicast", "", &admin.DeliveryTree{Messages: 3, Sent: &now}, "repeated for a minute"},
	} {
		w := &admin.WhyGroup{
			Group: "g", Tree: &admin.WhyTree{Group: tc.tree},
			Delivery: &admin.DeliveryMember{Channel: tc.channel, Tree: &admin.DeliveryLeaf{CatchUp: tc.catchUp}},
		}
		got := strings.Join(treeNext(w), "\n")
		if !strings.Contains(got, tc.want) || (tc.want == "") != (got == "") {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

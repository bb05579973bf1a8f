//go:build profile

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
)

func init() {
	profiled = func(dir string) (func(), error) {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("groupgate-%d.pprof", os.Getpid())))
		if err != nil {
			return nil, err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		return func() {
			pprof.StopCPUProfile()
			if h, err := os.Create(f.Name() + ".heap"); err == nil {
				_ = pprof.Lookup("heap").WriteTo(h, 0)
				_ = h.Close()
			}
			_ = f.Close()
		}, nil
	}
}

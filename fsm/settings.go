package fsm

import (
	"encoding/json"

	"github.com/google/uuid"
)

// Settings hold for a whole cluster.
type Settings struct {
	Cluster       uuid.UUID // nil until the cluster is initialised
	Retention     uint64    // microseconds that a deleted volume stays in /RecycleBin; 0: not at all
	SnapshotLimit int       // most snapshots of a volume, hidden ones included
	MinSize       uint64    // of a volume, bytes
	MaxSize       uint64    // of a volume, bytes
}

// DefaultSettings are the settings that a cluster starts with.
func DefaultSettings(cluster uuid.UUID) Settings {
	const hour, gib = 3600 * 1e6, 1 << 30
	return Settings{Cluster: cluster, Retention: hour, SnapshotLimit: 1024, MinSize: gib, MaxSize: 20480 * gib}
}

// InitCluster gives a new cluster its identity and settings. In a cluster that
// has them it changes nothing. Its value is the Settings that hold.
type InitCluster struct {
	Time     uint64 // microseconds since the epoch
	Settings Settings
}

var keySettings = []byte("settings")

// Settings returns the settings that hold.
func (s *State) Settings() Settings {
	data := s.bucket(bucketMeta).Get(keySettings)
	if data == nil {
		return DefaultSettings(uuid.Nil)
	}
	var settings Settings
	must(json.Unmarshal(data, &settings))
	return settings
}

func (c InitCluster) apply(s *State) (any, error) {
	switch n := c.Settings; {
	case n.Cluster == uuid.Nil:
		return nil, refuse(InvalidArgument, "a cluster needs an id")
	case n.SnapshotLimit < 1 || n.SnapshotLimit > maxSnapshotLimit:
		return nil, refuse(InvalidArgument, "snapshot limit %d: must be 1 to %d", n.SnapshotLimit, maxSnapshotLimit)
	case n.MinSize == 0 || n.MaxSize < n.MinSize || n.MaxSize > maxVolumeSize:
		return nil, refuse(InvalidArgument, "volume sizes %d to %d: must be within 1 to %d", n.MinSize, n.MaxSize, uint64(maxVolumeSize))
	}
	if held := s.Settings(); held.Cluster != uuid.Nil {
		return held, nil
	}
	data, err := json.Marshal(c.Settings)
	must(err)
	must(s.bucket(bucketMeta).Put(keySettings, data))
	s.makeDirectories(c.Time)
	return c.Settings, nil
}

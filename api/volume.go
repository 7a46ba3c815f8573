package api

import (
	"math"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/fsm"
)

func createFile(p *params) operation {
	return just(fsm.CreateVolume{
		User: p.required("User"),
		Time: p.now,
		Path: p.required("File"),
		Size: p.gib("Size"),
		Layout: chunk.Layout{
			Unit:  p.number("StripeUnit", math.MaxUint64, 0),
			Count: p.number("StripeCount", math.MaxUint64, 0),
		},
		Pool: p.optional("Poolset"),
	})
}

func extend(p *params) operation {
	return just(fsm.Extend{User: p.required("User"), Path: p.required("File"), Size: p.gib("Size")})
}

func renderVolumes(volumes []fsm.Volume) reply {
	infos := make([]client.FileInfo, len(volumes))
	for i, v := range volumes {
		infos[i] = renderVolume(v)
	}
	return &client.FilesReply{TotalCount: len(infos), FileInfos: infos}
}

func renderVolume(v fsm.Volume) client.FileInfo {
	return client.FileInfo{
		File:        v.Path,
		User:        v.User,
		Type:        client.Volume,
		Time:        v.Time,
		FileLength:  v.Size,
		StripeUnit:  v.Layout.Unit,
		StripeCount: v.Layout.Count,
		Status:      client.FileStatus(v.Status()),
		Readonly:    v.ReadOnly,
		Progress:    v.Progress,
	}
}

package api

import (
	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/fsm"
)

func createDir(p *params) operation {
	return just(fsm.CreateDir{User: p.required("User"), Time: p.now, Path: p.required("File")})
}

func listFile(p *params) operation {
	user, file, dir, page := p.required("User"), p.optional("File"), p.optional("Dir"), p.page()
	if file == "" && dir == "" {
		p.fail("one of the parameters Dir and File is required and must not be empty")
	}
	return query(func(s *fsm.State) (reply, error) {
		if file != "" {
			f, err := s.File(user, file)
			return renderFiles(cut([]fsm.File{f}, page), 1), err
		}
		files, total, err := s.List(user, dir, page)
		return renderFiles(files, total), err
	})
}

func deleteFile(p *params) operation {
	return just(fsm.Delete{User: p.required("User"), Time: p.now, Path: p.required("File")})
}

func rename(p *params) operation {
	return just(fsm.Rename{
		User: p.required("User"), Path: p.required("File"), Destination: p.required("Destination"),
	})
}

func restoreFile(p *params) operation {
	return just(fsm.RestoreFile{User: p.required("User"), Path: p.required("File")})
}

func renderFiles(files []fsm.File, total int) reply {
	infos := make([]client.FileInfo, len(files))
	for i, f := range files {
		infos[i] = renderFile(f)
	}
	return &client.FilesReply{TotalCount: total, FileInfos: infos}
}

func renderFile(f fsm.File) client.FileInfo {
	switch {
	case f.Volume != nil:
		return renderVolume(*f.Volume)
	case f.Directory != nil:
		return client.FileInfo{
			File: f.Directory.Path, User: f.Directory.User, Type: client.Directory, Time: f.Directory.Time, Progress: 100,
		}
	}
	return client.FileInfo{Type: client.UnknownFile}
}

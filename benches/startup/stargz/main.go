// The stargz snapshotter of Debian's library package, with its defaults, on a socket: Debian has the library and
// the client, and not the daemon. Built by scripts/peers.
package main

import (
	"context"
	"flag"
	"log"
	"net"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "", "socket to listen on")
	root := flag.String("root", "", "directory of the snapshots")
	flag.String("config", "", "not read: defaults are measured")
	flag.Parse()
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), *root, &service.Config{})
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := net.Listen("unix", *address)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}

//! What a container sees through us is what it sees through containerd's own unpacking.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration::command::until;
use integration::ctr::Run;
use integration::debian::{self, Step};
use integration::host::{Host, Indexing, ON_DEMAND, Published};
use integration::walk::{Kind, Tree, assert_same, differences};
use integration::{golden, walk};

/// Longest time for a small image to be fetched from loopback and hashed.
const FILLED: Duration = Duration::from_secs(120);

/// Whiteouts of files, of a directory with everything in it and of a directory made anew; files
/// with capabilities, setuid, hard links, renamed and replaced things.
const STEPS: [Step<'static>; 3] = [
    Step {
        name: "python",
        script: "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-minimal libcap2-bin
            rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin; setcap cap_net_raw+ep /usr/bin/nice",
        compressor: "gzip -9",
    },
    Step {
        name: "changed",
        script: "rm -r /usr/share/doc; rm /etc/motd; rm -r /media; mkdir /media; echo new >/media/file
            rm /usr/bin/tac; mkdir /usr/bin/tac; ln -s nowhere /usr/bin/tac/link
            chmod 0750 /usr/lib; chown 7:8 /srv; chmod 4711 /usr/bin/env
            ln /usr/bin/sort /usr/bin/sort2; mknod /dev/odd b 7 200; mkfifo /run/fifo
            truncate -s 5M /var/sparse; printf x >>/var/sparse; mv /opt /opt2",
        compressor: "gzip -1",
    },
    Step {
        name: "again",
        script: "mkdir -p /usr/share/doc/back; echo here >/usr/share/doc/back/file; rm /media/file
            rm -r /usr/bin/tac; echo a file again >/usr/bin/tac; touch -d '2001-02-03 04:05:06.789' /etc/hostname",
        compressor: "pigz -p 2",
    },
];

#[test]
fn a_debian_image_of_several_layers_with_whiteouts_is_the_same_tree() {
    let host = Host::start(ON_DEMAND).unwrap();
    let layers = debian::layers("fidelity", &STEPS).unwrap();
    let published = host
        .publish("debian", &layers, Indexing::default())
        .unwrap();
    assert_same_tree(&host, &published);
    assert_eq!(
        host.snapshotter.fuse_mounts().unwrap().len(),
        0,
        "views are closed"
    );
    host.finish().unwrap();
}

#[test]
fn layers_without_a_ztoc_among_lazy_ones_are_the_same_tree() {
    let host = Host::start(ON_DEMAND).unwrap();
    let layers = debian::layers("fidelity", &STEPS).unwrap();
    // The base and python3 are larger than this, the others smaller: lazy below, unpacked above.
    let how = Indexing {
        min_layer_size: 2 << 20,
        ..Indexing::default()
    };
    let small = layers
        .iter()
        .filter(|layer| fs::metadata(layer).unwrap().len() < 2 << 20)
        .count();
    assert_eq!(small, 2);
    let published = host.publish("mixed", &layers, how).unwrap();
    assert_same_tree(&host, &published);

    // And lazy above unpacked.
    let order = [&layers[2], &layers[0], &layers[3]].map(PathBuf::clone);
    let published = host.publish("upside-down", &order, how).unwrap();
    assert_same_tree(&host, &published);
    host.finish().unwrap();
}

#[test]
fn a_debian_image_by_compact_ztocs_is_the_same_tree() {
    let host = Host::start(ON_DEMAND).unwrap();
    let layers = debian::layers("fidelity", &STEPS).unwrap();
    let how = Indexing {
        compact: "yes",
        ..Indexing::default()
    };
    let published = host.publish("compact", &layers, how).unwrap();
    assert_same_tree(&host, &published);
    host.finish().unwrap();
}

/// The bytes of blobs that it takes to print a line from a Debian image, indexed like that.
fn bytes_to_a_line(compact: &'static str) -> u64 {
    let host = Host::start(ON_DEMAND).unwrap();
    let layers = debian::layers("fidelity", &STEPS).unwrap();
    let how = Indexing {
        span_size: 4 << 20,
        compact,
        compact_span_size: 1 << 20,
        ..Indexing::default()
    };
    let published = host.publish("line", &layers, how).unwrap();
    let before = host.registry.traffic().unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let run = Run::shell(&published.reference, "line", "echo hello");
    assert_eq!(host.ctr().run(run).unwrap(), "hello\n");
    let traffic = host.registry.traffic().unwrap().since(before);
    host.finish().unwrap();
    traffic.blob_bytes
}

#[test]
fn a_line_from_a_debian_image_takes_less_than_half_of_the_bytes_by_compact_ztocs() {
    let (compact, ztocs) = (bytes_to_a_line("yes"), bytes_to_a_line("no"));
    eprintln!("{compact} of {ztocs} bytes");
    assert!(compact * 2 < ztocs, "{compact} of {ztocs} bytes");
}

#[test]
fn an_image_without_index_is_the_same_tree() {
    let host = Host::start(ON_DEMAND).unwrap();
    let layers = debian::layers("fidelity", &STEPS).unwrap();
    let published = host.publish_plain("plain", &layers).unwrap();
    assert_same_tree(&host, &published);
    host.finish().unwrap();
}

/// GNU tar pads archives with zeros, which belong to the diff ID and not to the zTOC.
#[test]
fn a_debian_image_that_is_filled_in_the_background_is_proven_and_stays_the_same_tree() {
    let host = Host::start("").unwrap();
    let layers = debian::layers("fidelity", &STEPS).unwrap();
    let published = host
        .publish("filled", &layers, Indexing::default())
        .unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let mounts = host
        .ctr()
        .prepare("soci", "filled", &published.image.chain_id())
        .unwrap();
    let mounted = mounts.mount(&host.scratch, "filled").unwrap();
    let before = walk::walk(mounted.path()).unwrap();
    let dir = host.snapshotter.root().join("layers");
    until("all layers are proven", FILLED, || {
        let dirs = host.snapshotter.layers()?;
        let is = |name: &str, what: &str| dir.join(name).join(what).exists();
        assert!(!dirs.iter().any(|name| is(name, "quarantined")));
        Ok(dirs.iter().all(|name| is(name, "proven")).then_some(()))
    })
    .unwrap();
    assert_same(&before, &walk::walk(mounted.path()).unwrap());
    drop(mounted);
    host.ctr().remove_snapshot("soci", "filled").unwrap();
    host.finish().unwrap();
}

/// Layers that containerd unpacks. Left out: 03w (a hard link before its target: see below), 16e
/// and 16f (garbage after the stream, stream cut short: not images).
const GOLDEN: [&str; 17] = [
    "01-debian-gostd.tar.gz",
    "03-odd-pax-gzip9.tar.gz",
    "04a-gnu-long-nonutf8.tar.gz",
    "04d-sparse-pax-0.0.tar.gz",
    "05a-zlib-rle.tar.gz",
    "06-stored.tar.gz",
    "06c-go-bestspeed.tar.gz",
    "06e-zlib-syncflush.tar.gz",
    "07-multimember.tar.gz",
    "10-plain.tar",
    "11a-umoci.tar.gz",
    "13-tiny.tar.gz",
    "14-empty.tar.gz",
    "15-spans-go.tar.gz",
    "16a-global-pax.tar.gz",
    "03-odd-pax-gzip9.tar.gz 03u-whiteouts.tar.gz",
    "12-zstd.tar.zst",
];

#[test]
fn every_golden_layer_is_the_same_tree() {
    let host = Host::start(ON_DEMAND).unwrap();
    let mut wrong = Vec::new();
    for (number, names) in GOLDEN.into_iter().enumerate() {
        let layers: Vec<_> = names
            .split(' ')
            .map(|name| golden::layer(name).unwrap())
            .collect();
        let name = format!("golden-{number}");
        let indexed = host.publish(&name, &layers, Indexing::default());
        // zstd layers get no zTOC, and an image of nothing else no index.
        let published = match names.contains("zstd") {
            true => host.publish_plain(&name, &layers),
            false => indexed,
        };
        match published.and_then(|published| trees(&host, &published)) {
            Ok((expected, actual)) => {
                let found = differences(&expected, &actual);
                wrong.extend(found.into_iter().map(|line| format!("{names}: {line}")));
            }
            Err(error) => wrong.push(format!("{names}: {error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    host.finish().unwrap();
}

#[test]
fn a_hard_link_before_its_target_works_though_containerd_refuses_it() {
    let host = Host::start(ON_DEMAND).unwrap();
    let layers = [golden::layer("03w-hardlink-forward.tar.gz").unwrap()];
    let published = host
        .publish("forward", &layers, Indexing::default())
        .unwrap();
    assert!(host.ctr().pull("overlayfs", &published.reference).is_err());

    host.soci().unwrap().rpull(&published.reference).unwrap();
    let tree = host.walk("soci", &published).unwrap();
    let files: Vec<_> = tree
        .values()
        .filter_map(|node| regular(&node.kind))
        .collect();
    assert_eq!(files.len(), 2, "{tree:#?}");
    assert_eq!(files[0], files[1]);
    assert_eq!(files[0].0, 2, "links");
    assert_eq!(
        tree.values().filter(|node| node.same_as.is_some()).count(),
        1
    );
    host.finish().unwrap();
}

fn regular(kind: &Kind) -> Option<(u64, u64, &str)> {
    match kind {
        Kind::Regular {
            size,
            links,
            sha256,
        } => Some((*links, *size, sha256)),
        _ => None,
    }
}

fn assert_same_tree(host: &Host, published: &Published) {
    let (expected, actual) = trees(host, published).unwrap();
    assert_same(&expected, &actual);
}

/// The tree of an image through containerd's overlayfs, and through us.
fn trees(host: &Host, published: &Published) -> anyhow::Result<(Tree, Tree)> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    host.ctr().pull("overlayfs", &published.reference)?;
    let mut expected = host.walk("overlayfs", published)?;
    host.ctr().remove_image(&published.reference)?;
    host.soci()?.rpull(&published.reference)?;
    let actual = host.walk("soci", published)?;
    // Another image may have the same diff IDs: it must not find these snapshots.
    host.ctr().remove_image(&published.reference)?;
    for (path, node) in &mut expected {
        // containerd stamps directories that it had to make by itself with the current time.
        let is_stamped = node.mtime.0 >= i64::try_from(started)?;
        if let (walk::Kind::Directory, true, Some(ours)) =
            (&node.kind, is_stamped, actual.get(path))
        {
            node.mtime = ours.mtime;
        }
    }
    Ok((expected, actual))
}

//! containerd with everything private, and what it makes of layers when it unpacks them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::MntFlags;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A containerd for one test.
pub(crate) struct Containerd {
    daemon: Child,
    directory: TempDir,
}

const IMAGE: &str = "docker.io/library/layers:1";

impl Containerd {
    pub(crate) fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("socket")
        );
        fs::write(at("config.toml"), config).unwrap();
        let daemon = Command::new("containerd")
            .args(["--config", &at("config.toml")])
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let containerd = Self { daemon, directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !containerd.ctr(&["version"]).status().unwrap().success() {
            assert!(Instant::now() < deadline, "containerd does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    /// Unpacks an image of `layers`, bottom first; the result is mounted at the returned path.
    pub(crate) fn unpack(&self, layers: &[Vec<u8>]) -> PathBuf {
        let image = self.directory.path().join("image.tar");
        fs::write(&image, oci_archive(layers)).unwrap();
        let merged = self.directory.path().join("merged");
        fs::create_dir(&merged).unwrap();
        let (image, target) = (image.display().to_string(), merged.display().to_string());
        self.run(&["images", "import", "--snapshotter", "overlayfs", &image]);
        self.run(&[
            "images",
            "mount",
            "--snapshotter",
            "overlayfs",
            "--rw",
            IMAGE,
            &target,
        ]);
        merged
    }

    fn run(&self, arguments: &[&str]) {
        let output = self.ctr(arguments).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {arguments:?}: {said}");
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address")
            .arg(self.directory.path().join("socket"));
        ctr.args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ctr
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.directory.path().join("merged"), MntFlags::MNT_DETACH);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// An OCI image layout of `layers` as one tar, as `ctr images import` takes it.
fn oci_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, data).unwrap();
    };
    let mut blob = |media_type: &str, data: &[u8]| {
        let digest = hex(&Sha256::digest(data));
        put(&format!("blobs/sha256/{digest}"), data);
        let size = data.len();
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":{size}"#)
    };
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        descriptors.push(blob("application/vnd.oci.image.layer.v1.tar", layer) + "}");
        diff_ids.push(format!("\"sha256:{}\"", hex(&Sha256::digest(layer))));
    }
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        config.as_bytes(),
    ) + "}";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{}]}}"#,
        descriptors.join(",")
    );
    let manifest = blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{manifest},"annotations":{{"io.containerd.image.name":"{IMAGE}"}}}}]}}"#
    );
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    put("index.json", index.as_bytes());
    archive.into_inner().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

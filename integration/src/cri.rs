//! What a kubelet asks of containerd, and of our image service, over gRPC.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use proto::runtime::v1::image_service_client::ImageServiceClient;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use proto::runtime::v1::{
    AuthConfig, ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest,
    ExecSyncResponse, FilesystemUsage, IdMapping, Image, ImageFsInfoRequest, ImageSpec,
    ImageStatusRequest, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UserNamespace, VersionRequest,
};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

/// A kubelet that does one thing after another.
#[derive(Debug)]
pub struct Kubelet {
    runtime: Runtime,
    containers: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// A pod, in the host's network unless that cannot be.
#[derive(Debug, Clone)]
pub struct Pod {
    id: String,
    config: PodSandboxConfig,
}

impl Kubelet {
    /// One that runs containers by the socket `containers`, and pulls images by the socket `images`.
    pub fn new(containers: &Path, images: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let _within = runtime.enter();
        let (containers, images) = (channel(containers), channel(images));
        Ok(Self {
            containers: RuntimeServiceClient::new(containers),
            images: ImageServiceClient::new(images),
            runtime,
        })
    }

    /// The runtime's name and version.
    pub fn version(&mut self) -> Result<String> {
        let asked = self.containers.version(VersionRequest::default());
        let version = self.runtime.block_on(asked)?.into_inner();
        Ok(format!(
            "{} {}",
            version.runtime_name, version.runtime_version
        ))
    }

    /// Pulls `image`, with user and password if need be; the image's id.
    pub fn pull(&mut self, image: &str, user: Option<(&str, &str)>) -> Result<String> {
        let auth = user.map(|(user, password)| AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        });
        let pull = PullImageRequest {
            image: spec(image),
            auth,
            sandbox_config: None,
        };
        let pulled = self.runtime.block_on(self.images.pull_image(pull))?;
        Ok(pulled.into_inner().image_ref)
    }

    /// What is known of `image`, if it is there.
    pub fn image(&mut self, image: &str) -> Result<Option<Image>> {
        let status = ImageStatusRequest { image: spec(image) };
        let known = self.runtime.block_on(self.images.image_status(status))?;
        Ok(known.into_inner().image)
    }

    /// Removes `image`, a reference or an id.
    pub fn remove_image(&mut self, image: &str) -> Result<()> {
        let remove = RemoveImageRequest { image: spec(image) };
        self.runtime.block_on(self.images.remove_image(remove))?;
        Ok(())
    }

    /// The file systems on which images are.
    pub fn image_file_systems(&mut self) -> Result<Vec<FilesystemUsage>> {
        let asked = self.images.image_fs_info(ImageFsInfoRequest {});
        Ok(self.runtime.block_on(asked)?.into_inner().image_filesystems)
    }

    /// Starts a pod.
    pub fn run_pod(&mut self, name: &str) -> Result<Pod> {
        self.run_pod_in(
            name,
            NamespaceOption {
                network: NamespaceMode::Node.into(),
                pid: NamespaceMode::Container.into(),
                ipc: NamespaceMode::Pod.into(),
                userns_options: None,
            },
        )
    }

    /// Starts a pod with a user namespace (`hostUsers: false`), whose ids are those of this node from `first` on. It has
    /// a network of its own, since the host's belongs to another user namespace.
    pub fn run_pod_of_users(&mut self, name: &str, first: u32) -> Result<Pod> {
        let mapping = IdMapping {
            host_id: first,
            container_id: 0,
            length: 65_536,
        };
        self.run_pod_in(
            name,
            NamespaceOption {
                network: NamespaceMode::Pod.into(),
                pid: NamespaceMode::Container.into(),
                ipc: NamespaceMode::Pod.into(),
                userns_options: Some(UserNamespace {
                    mode: NamespaceMode::Pod.into(),
                    uids: vec![mapping],
                    gids: vec![mapping],
                }),
            },
        )
    }

    fn run_pod_in(&mut self, name: &str, namespaces: NamespaceOption) -> Result<Pod> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: String::from("default"),
                attempt: 0,
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: String::new(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                }),
            }),
            ..PodSandboxConfig::default()
        };
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let run = self.runtime.block_on(self.containers.run_pod_sandbox(run));
        let id = run.context("RunPodSandbox")?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Makes a container of `image` in `pod` and starts it; its id.
    pub fn start(&mut self, pod: &Pod, image: &str, command: &[&str]) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: String::from("main"),
                attempt: 0,
            }),
            image: spec(image),
            command: command.iter().map(|word| String::from(*word)).collect(),
            linux: pod.of_users(),
            ..ContainerConfig::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let made = self
            .runtime
            .block_on(self.containers.create_container(create));
        let container_id = made.context("CreateContainer")?.into_inner().container_id;
        let start = StartContainerRequest {
            container_id: container_id.clone(),
        };
        let started = self
            .runtime
            .block_on(self.containers.start_container(start));
        started.context("StartContainer")?;
        Ok(container_id)
    }

    /// Runs `command` in a container.
    pub fn exec(&mut self, container: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let exec = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| String::from(*word)).collect(),
            timeout: 60,
        };
        let done = self.runtime.block_on(self.containers.exec_sync(exec));
        Ok(done.context("ExecSync")?.into_inner())
    }

    /// The standard output of `command` in a container, which succeeds.
    pub fn output(&mut self, container: &str, command: &[&str]) -> Result<String> {
        let done = self.exec(container, command)?;
        let (out, err) = (done.stdout, done.stderr);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            done.exit_code == 0,
            "{command:?}: {}{}",
            text(&out),
            text(&err)
        );
        Ok(text(&out))
    }

    /// Stops and removes a container.
    pub fn remove(&mut self, container: &str) -> Result<()> {
        let stop = StopContainerRequest {
            container_id: container.to_owned(),
            timeout: 1,
        };
        self.runtime
            .block_on(self.containers.stop_container(stop))?;
        let remove = RemoveContainerRequest {
            container_id: container.to_owned(),
        };
        self.runtime
            .block_on(self.containers.remove_container(remove))?;
        Ok(())
    }

    /// Stops and removes a pod.
    pub fn remove_pod(&mut self, pod: Pod) -> Result<()> {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        self.runtime
            .block_on(self.containers.stop_pod_sandbox(stop))?;
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: pod.id,
        };
        self.runtime
            .block_on(self.containers.remove_pod_sandbox(remove))?;
        Ok(())
    }
}

impl Pod {
    /// What a container of it has to say as well, if the pod has a user namespace.
    fn of_users(&self) -> Option<LinuxContainerConfig> {
        let sandbox = self.config.linux.as_ref()?.security_context.as_ref()?;
        let namespaces = sandbox.namespace_options.clone()?;
        namespaces.userns_options.as_ref()?;
        Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
            }),
        })
    }
}

#[allow(clippy::unnecessary_wraps)] // As the fields are.
fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec {
        image: image.to_owned(),
    })
}

fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let endpoint = Endpoint::from_static("http://localhost").timeout(Duration::from_secs(120));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

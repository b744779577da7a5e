//! Wire types and gRPC stubs, generated on prost and tonic; nothing here is written by hand.
//!
//! The definitions under `protos/` carry the package names and field numbers of containerd's API.
//! [`containerd::services::snapshots`] has the server that containerd calls; the other services
//! are there for their clients.
//!
//! [`runtime::v1`] is what is used of Kubernetes' container runtime interface.
//!
//! [`spanshot::control`] is our own: what an operator may ask of the running daemon.
//!
//! `google.protobuf.Empty` is `()`, the other well-known types are those of [`prost_types`].

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    clippy::or_fun_call,
    clippy::too_many_arguments,
    clippy::too_many_lines
)]

include!(concat!(env!("OUT_DIR"), "/all.rs"));

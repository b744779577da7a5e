//! FlatBuffers: a checked reader and the writer.

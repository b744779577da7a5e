//! Tar headers as Go archive/tar reads them.

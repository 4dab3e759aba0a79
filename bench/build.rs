//! The one gRPC service of the benchmarks: a stream of writes each way. It is described here, so that nobody needs protoc.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let exchange = Method::builder()
        .name("exchange")
        .route_name("Exchange")
        .input_type("crate::wire::Writes")
        .output_type("crate::wire::Writes")
        .codec_path("tonic_prost::ProstCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let service = Service::builder().name("Plain").package("tagalong.bench").method(exchange).build();
    Builder::new().compile(&[service]);
}

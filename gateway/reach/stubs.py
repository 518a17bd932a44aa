"""Stubs of the two services, on which chunks of embeddings never become messages."""

import grpc
from diptych.v1 import decoder_service_pb2, encoder_service_pb2
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from services.common.chunk_wire import ENCODE_RESPONSE, GENERATE_REQUEST


def encoder_stub(channel: grpc.aio.Channel) -> EncoderServiceStub:
    """`Encode` answers with messages and chunks."""
    stub = EncoderServiceStub(channel)
    stub.Encode = channel.stream_stream(
        "/diptych.v1.EncoderService/Encode",
        request_serializer=encoder_service_pb2.EncodeRequest.SerializeToString,
        response_deserializer=ENCODE_RESPONSE.read,
    )
    return stub


def decoder_stub(channel: grpc.aio.Channel) -> DecoderServiceStub:
    """`Generate` takes messages and chunks."""
    stub = DecoderServiceStub(channel)
    stub.Generate = channel.stream_stream(
        "/diptych.v1.DecoderService/Generate",
        request_serializer=GENERATE_REQUEST.write,
        response_deserializer=decoder_service_pb2.GenerateResponse.FromString,
    )
    return stub

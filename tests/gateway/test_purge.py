"""A purge reaches every place and counts what each has removed."""

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import decoder_service_pb2, encoder_service_pb2

from services.common.keys import EPOCH_BYTES
from tests.gateway.fakes import Stage


async def test_encoders_and_decoders_are_told_the_same_epoch(stage: Stage) -> None:
    """Values and bytes of both are in the sum, and blocks."""
    stage.encoder.removed = encoder_service_pb2.PurgeEncoderResponse(num_values=1, num_bytes=10)
    stage.decoder.removed = decoder_service_pb2.PurgeDecoderResponse(num_values=2, num_bytes=20, num_blocks=3)
    answer = await stage.stub.PurgeMedia(chat.PurgeMediaRequest())
    assert answer == chat.PurgeMediaResponse(num_values=3, num_bytes=30, num_blocks=3)
    (to_encoder,), (to_decoder,) = stage.encoder.purges, stage.decoder.purges
    assert (to_encoder.tenant, to_encoder.epoch) == (to_decoder.tenant, to_decoder.epoch)
    assert len(to_decoder.epoch) == EPOCH_BYTES

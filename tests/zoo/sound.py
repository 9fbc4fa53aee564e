"""Pipelines of sound: samples over time."""

import diffusers
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

from tests.zoo.entry import COND, CU, PROMPT, T5_WORDS, Entry
from tests.zoo.parts import around, network, t5_encoder, t5_tokenizer


def _dance_diffusion():
    """An unconditional one-dimensional network."""
    unet = diffusers.UNet1DModel(
        block_out_channels=(32, 32, 64), extra_in_channels=64, sample_size=64, sample_rate=16, in_channels=2,
        out_channels=2,
        flip_sin_to_cos=True, use_timestep_embedding=False, time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D", down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    ).eval()  # fmt: skip
    return diffusers.DanceDiffusionPipeline(unet=unet, scheduler=diffusers.IPNDMScheduler())


def _codec():
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=4,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    ).eval()  # fmt: skip


def _stable_audio():
    transformer = network(
        "StableAudioDiTModel", sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, num_key_value_attention_heads=1, cross_attention_dim=8, time_proj_dim=8,
        global_states_input_dim=16, cross_attention_input_dim=8,
    )  # fmt: skip
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    durations = diffusers.StableAudioProjectionModel(
        text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32
    ).eval()
    return around(
        "StableAudioPipeline", transformer, scheduler, vae=_codec(), projection_model=durations,
        text_encoder=t5_encoder(8), tokenizer=t5_tokenizer(),
    )  # fmt: skip


def _stable_audio_3():
    transformer = network(
        "StableAudio3DiTModel", io_channels=4, embed_dim=16, depth=2, num_heads=2, cond_token_dim=8,
        global_cond_dim=8, local_add_cond_dim=5, timestep_features_dim=8, num_memory_tokens=3,
    )  # fmt: skip
    codec = network(
        "AutoencoderSAME", patch_size=2, encoder_channels=8, encoder_c_mults=(1,), encoder_strides=(2,),
        encoder_transformer_depths=(1,), latent_dim=4, dim_heads=4, sampling_rate=8,
    )  # fmt: skip
    return around(
        "StableAudio3Pipeline", transformer, vae=codec, text_encoder=t5_encoder(8), tokenizer=t5_tokenizer(),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=8, fourier_dim=8).eval(),
    )  # fmt: skip


def _longcat_audio():
    transformer = network(
        "LongCatAudioDiTTransformer", dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4
    )
    codec = network(
        "LongCatAudioDiTVae", channels=4, c_mults=[1, 1], strides=[2], latent_dim=4, encoder_latent_dim=8,
        downsampling_ratio=2, sample_rate=4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True)
    return around(
        "LongCatAudioDiTPipeline", transformer, scheduler, vae=codec, text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


def _ace_step():
    transformer = network(
        "AceStepTransformer1DModel", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=2,
    )  # fmt: skip
    condition = AceStepConditionEncoder(
        hidden_size=16, intermediate_size=16, text_hidden_dim=16, timbre_hidden_dim=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1,
    ).eval()  # fmt: skip
    return around(
        "AceStepPipeline", transformer, diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
        vae=_codec(), condition_encoder=condition, text_encoder=t5_encoder(), tokenizer=t5_tokenizer(256),
    )  # fmt: skip


SOUND: dict[str, Entry] = {
    "dance-diffusion": Entry(
        _dance_diffusion,
        {"audio_length_in_s": 4},
        "mid_block",
        branches=COND,
        attention="down_blocks.2.attentions.0",
        predicts=None,
    ),
    "stable-audio": Entry(
        _stable_audio,
        PROMPT,
        "transformer_blocks.0",
        (8,),
        first=1,
        attention="transformer_blocks.0.attn2",
        queries=(1, None),
        words=T5_WORDS,
        predicts="edm",
    ),
    "stable-audio-3": Entry(
        _stable_audio_3,
        {**PROMPT, "duration": 4.0, "guidance_scale": 3.0},
        "transformer_blocks.0",
        (8,),
        first=3,
        attention="transformer_blocks.0.cross_attn",
        queries=(3, None),
        differential=True,
        crosses=("cross_attn",),
        words=T5_WORDS,
        predicts="flow",
    ),
    "longcat-audio": Entry(
        _longcat_audio,
        {**PROMPT, "audio_duration_s": 4.0},
        "blocks.0",
        (8,),
        branches=CU,
        attention="blocks.0.cross_attn",
        crosses=("cross_attn",),
        words=T5_WORDS,
        predicts="inverted",
        frames_first=True,
    ),
    "ace-step": Entry(
        _ace_step,
        {"prompt": "a red fox", "lyrics": "a cat", "audio_duration": 8.0, "guidance_scale": 3.0},
        "layers.0",
        (8,),
        branches=CU,
        attention="layers.0.cross_attn",
        predicts="flow",
        frames_first=True,
    ),
}

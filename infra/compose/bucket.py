"""Make a bucket if it is not there: ``python -m infra.compose.bucket NAME``, by the AWS_* variables."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import VitrailError, run_cli


def main(argv: Sequence[str]) -> int:
    """Make the bucket that ``argv`` names."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    if len(argv) != 1:
        raise VitrailError("expected one bucket name: python -m infra.compose.bucket NAME")
    try:
        boto3.client("s3").create_bucket(Bucket=argv[0])
    except ClientError as fault:
        code = fault.response.get("Error", {}).get("Code", "")
        if code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise VitrailError(f"bucket {argv[0]}: S3 refused with {code}") from None
    except BotoCoreError as fault:
        raise VitrailError(f"bucket {argv[0]}: {' '.join(str(fault).split())}; check the AWS_* variables") from None
    print(f"bucket {argv[0]}: there")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))

import java.net.URI;
import java.security.KeyFactory;
import java.security.Principal;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.util.Arrays;
import java.util.Collections;
import java.util.HexFormat;

import org.eclipse.californium.core.CoapClient;
import org.eclipse.californium.core.CoapResponse;
import org.eclipse.californium.core.coap.CoAP.Code;
import org.eclipse.californium.core.coap.Request;
import org.eclipse.californium.core.config.CoapConfig;
import org.eclipse.californium.core.network.CoapEndpoint;
import org.eclipse.californium.elements.DtlsEndpointContext;
import org.eclipse.californium.elements.auth.RawPublicKeyIdentity;
import org.eclipse.californium.elements.config.Configuration;
import org.eclipse.californium.elements.config.UdpConfig;
import org.eclipse.californium.scandium.DTLSConnector;
import org.eclipse.californium.scandium.config.DtlsConfig;
import org.eclipse.californium.scandium.config.DtlsConnectorConfig;
import org.eclipse.californium.scandium.dtls.CertificateType;
import org.eclipse.californium.scandium.dtls.cipher.CipherSuite;
import org.eclipse.californium.scandium.dtls.pskstore.AdvancedSinglePskStore;
import org.eclipse.californium.scandium.dtls.x509.SingleCertificateProvider;
import org.eclipse.californium.scandium.dtls.x509.StaticNewAdvancedCertificateVerifier;

/**
 * A client on Californium and Scandium with a raw public key (RFC 7250) or a
 * pre-shared key, for the tests of interoperation.
 *
 * <pre>
 * RawKeyPeer PSK IDENTITY KEY CID-LENGTH URI
 * RawKeyPeer ALGORITHM PRIVATE PUBLIC SERVER CID-LENGTH [METHOD URI PAYLOAD]...
 * </pre>
 *
 * With a pre-shared key it reads URI, waits for a byte on its standard input, reads it
 * again, and prints code, length and whether the handshake was the same.
 * ALGORITHM is EC or Ed25519; keys are PKCS #8 and SubjectPublicKeyInfo in
 * hexadecimal. It trusts no server but the one with the key SERVER, gives out a
 * connection ID of CID-LENGTH bytes (-1: does not know them), makes the requests
 * one after the other, with Content-Format 261 where there is a payload ("-" is
 * none), and prints one line for each: code, a space, the payload in hexadecimal.
 */
public class RawKeyPeer {
	public static void main(String[] args) throws Exception {
		CoapConfig.register();
		UdpConfig.register();
		DtlsConfig.register();
		Configuration config = Configuration.createStandardWithoutFile();
		if (args[0].equals("PSK")) {
			usePSK(args, config);
			return;
		}
		KeyFactory keys = KeyFactory.getInstance(args[0]);
		PrivateKey own = keys.generatePrivate(new PKCS8EncodedKeySpec(bytes(args[1])));
		PublicKey shown = keys.generatePublic(new X509EncodedKeySpec(bytes(args[2])));
		PublicKey server = KeyFactory.getInstance("EC").generatePublic(new X509EncodedKeySpec(bytes(args[3])));
		config.set(DtlsConfig.DTLS_ROLE, DtlsConfig.DtlsRole.CLIENT_ONLY);
		config.setAsList(DtlsConfig.DTLS_CIPHER_SUITES, CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8);
		int cid = Integer.parseInt(args[4]);
		if (cid >= 0) {
			config.set(DtlsConfig.DTLS_CONNECTION_ID_LENGTH, cid);
		}
		DtlsConnectorConfig.Builder dtls = DtlsConnectorConfig.builder(config);
		dtls.setCertificateIdentityProvider(new SingleCertificateProvider(own, shown));
		dtls.setAdvancedCertificateVerifier(StaticNewAdvancedCertificateVerifier.builder()
				.setTrustedRPKs(new RawPublicKeyIdentity(server))
				.setSupportedCertificateTypes(Collections.singletonList(CertificateType.RAW_PUBLIC_KEY)).build());
		CoapEndpoint endpoint = CoapEndpoint.builder().setConfiguration(config)
				.setConnector(new DTLSConnector(dtls.build())).build();
		CoapClient client = new CoapClient();
		client.setEndpoint(endpoint);
		client.setTimeout(10000L);
		for (int i = 5; i + 2 < args.length; i += 3) {
			Request request = new Request(Code.valueOf(args[i]));
			request.setURI(new URI(args[i + 1]));
			if (!args[i + 2].equals("-")) {
				request.setPayload(bytes(args[i + 2]));
				request.getOptions().setContentFormat(261);
			}
			CoapResponse r = client.advanced(request);
			if (r == null) {
				System.out.println("none " + request.getSendError());
				System.exit(1);
			}
			Principal peer = r.advanced().getSourceContext().getPeerIdentity();
			if (!(peer instanceof RawPublicKeyIdentity) || !Arrays.equals(((RawPublicKeyIdentity) peer).getKey().getEncoded(), bytes(args[3]))) {
				System.out.println("other server " + peer);
				System.exit(1);
			}
			System.out.println(r.getCode() + " " + HexFormat.of().formatHex(r.getPayload()));
		}
		client.shutdown();
		System.exit(0);
	}

	static void usePSK(String[] args, Configuration config) throws Exception {
		config.set(DtlsConfig.DTLS_ROLE, DtlsConfig.DtlsRole.CLIENT_ONLY);
		config.setAsList(DtlsConfig.DTLS_CIPHER_SUITES, CipherSuite.TLS_PSK_WITH_AES_128_CCM_8);
		int cid = Integer.parseInt(args[3]);
		if (cid >= 0) {
			config.set(DtlsConfig.DTLS_CONNECTION_ID_LENGTH, cid);
		}
		DtlsConnectorConfig.Builder dtls = DtlsConnectorConfig.builder(config);
		dtls.setAdvancedPskStore(new AdvancedSinglePskStore(args[1], bytes(args[2])));
		DTLSConnector connector = new DTLSConnector(dtls.build());
		CoapEndpoint endpoint = CoapEndpoint.builder().setConfiguration(config).setConnector(connector).build();
		CoapClient client = new CoapClient();
		client.setEndpoint(endpoint);
		client.setTimeout(10000L);
		String session = null;
		for (int i = 0; i < 2; i++) {
			if (i == 1) {
				System.in.read();
			}
			Request request = new Request(Code.GET);
			request.setURI(new URI(args[4]));
			CoapResponse r = client.advanced(request);
			if (r == null) {
				System.out.println("none " + request.getSendError());
				System.exit(1);
			}
			String now = String.valueOf(r.advanced().getSourceContext().get(DtlsEndpointContext.KEY_HANDSHAKE_TIMESTAMP));
			System.out.println(r.getCode() + " " + (session == null || session.equals(now) ? "same" : "another"));
			session = now;
		}
		client.shutdown();
		System.exit(0);
	}

	static byte[] bytes(String hex) {
		return HexFormat.of().parseHex(hex);
	}
}
